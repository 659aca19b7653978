#!/usr/bin/env bash
# The three passes on synthetic scenes, from random weights, on any machine; scenes are drawn into data/synthetic, once.
# 1.pth, 2.pth, best.pth in results/demo/train, and packed.pth: how checkpoints/prx_change_r18.pth was made.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repo="$(cd "$here/.." && pwd)"; . "$here/in_front.sh"
[ -n "${python:-}" ] || python="$(cd "$repo" && python3 -m change.common.environment requirements.txt)"
export python PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
export root="${root:-$repo/data/synthetic}" save_path="${save_path:-$repo/results/demo/train}"
[ -d "$root/train" ] || "$python" -m change samples "$root/train" --count "${count:-400}" --size 512 --seed 1
[ -d "$root/val" ] || "$python" -m change samples "$root/val" --count 40 --size 512 --seed 2
export pretrained="${pretrained:-none}" trainsize="${trainsize:-0}" cropsize="${cropsize:-128}" eps="${eps:-1e-8}"
export val_epoch="${val_epoch:-20}" epoch1="${epoch1:-55}" epoch2="${epoch2:-14}" epoch3="${epoch3:-26}"
bash "$here/train_all.sh" levir "$@"
rm -f "$save_path/packed.pth" && "$python" -m change pack "$save_path/best.pth" "$save_path/packed.pth"
