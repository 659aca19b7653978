# Sourced by train_land.sh and train_buildings.sh: one pass of refine + cross on crops of 256, from the weights that start
# names, and packed.pth. Run again, it goes on where it stopped.
. "$here/in_front.sh"
start="${checkpoint_path:-$start}"; unset checkpoint_path continue_run data; export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
: "${warmup:=1}" "${scale:=0.8 1.25}"
(checkpoint_path="$start" data="$root"; . "$here/finetune.sh" "$@")
rm -f "$save_path/packed.pth" && "$python" -m change pack "$save_path/best.pth" "$save_path/packed.pth"
