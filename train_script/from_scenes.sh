# Sourced by train_land.sh and train_buildings.sh: one pass of refine + cross on crops of 256, from the weights of
# train_demo.sh, and packed.pth. Run again, it goes on where it stopped.
. "$here/in_front.sh"
: "${start:=${checkpoint_path:-$here/../checkpoints/prx_change_r18.pth}}"
unset checkpoint_path continue_run data; export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
: "${train_batchsize:=4}" "${lr:=7e-4}" "${warmup:=1}" "${scale:=0.8 1.25}"
(checkpoint_path="$start" data="$root"; . "$here/finetune.sh" "$@")
rm -f "$save_path/packed.pth" && "$python" -m change pack "$save_path/best.pth" "$save_path/packed.pth"
