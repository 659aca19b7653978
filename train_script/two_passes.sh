# Sourced by train_land.sh and train_buildings.sh, for weights from random numbers: pass 1, base, epoch1 on crops of 128;
# pass 2, refine + cross, epoch2 on crops of 256 at the rate lr2; then packed.pth. Run again, it goes on where it stopped.
repo="$(cd "$here/.." && pwd)"; unset refine cross within resume checkpoint_path continue_run best_name epoch cropsize
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
: "${recipe:=scratch}" "${pretrained:=none}" "${trainsize:=0}" "${val_batchsize:=1}"
each() {  # name of the weights, epochs, side of the crops, further arguments
  local best_name="$1" epoch="$2" cropsize="$3" program=train; shift 3
  [ ! -f "$save_path/$best_name.state.pth" ] || set -- "$@" --continue_run "$save_path"
  (. "$here/run.sh")
}
each 1 "$epoch1" 128 "$@"
each best "$epoch2" 256 --refine --cross --resume --checkpoint_path "$save_path/1.pth" --lr "${lr2:-5e-4}" --pseudo 0 "$@"
rm -f "$save_path/packed.pth" && "$python" -m change pack "$save_path/best.pth" "$save_path/packed.pth"
