# Sourced by the other scripts: runs train.py or test.py with every option that is set as a variable of its name.
# The interpreter is $python, else that of an active environment, else of .venv, else python3.
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case "$program" in
  train) names="root list trainsize cropsize color_setting epoch lr weight_decay train_batchsize val_batchsize
    val_epoch decay_epoch power backbone refine cross k beta l1 l2 save_path best_name save_freq save_minutes
    checkpoint_path resume pretrained mixed_precision_training amp continue_run device workers seed" ;;
  test) names="test_root list checkpoint_path testsize test_batchsize amp save_path save_result save_result_path
    save_iou_map save_iou_map_path save_panels save_panels_path device workers" ;;
esac
[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || [ ! -x "$repo/.venv/bin/python" ] || python="${python:-$repo/.venv/bin/python}"
options=()
for name in $names; do [ -z "${!name:-}" ] || options+=("--$name=${!name}"); done
exec "${python:-python3}" "$repo/$program.py" ${options[@]+"${options[@]}"} "$@"
