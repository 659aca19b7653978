# Sourced by the others: runs train.py or test.py with every option that is set as a variable of its name, in $nproc
# processes. The interpreter is $python, else the one that change/common/environment.py finds, or sets up.
repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case "$program" in
  train) names="recipe root list trainsize cropsize color_setting scale symmetries swap epoch lr weight_decay decay_norms
    eps train_batchsize grad_accum schedule power warmup model dice prior keep ema seed val_batchsize val_epoch decay_epoch
    backbone refine cross within k beta l1 l2 save_path best_name save_freq save_minutes resume checkpoint_path pretrained
    mixed_precision_training amp deterministic compile kept_activations cache cache_path device continue_run workers" ;;
  test) names="test_root list checkpoint_path testsize test_batchsize protocol window overlap tta threshold check amp device
    save_path save_result save_result_path save_iou_map save_iou_map_path save_panels save_panels_path report compile workers" ;;
esac
[ -n "${python:-}" ] || python="$(cd "$repo" && python3 -m change.common.environment requirements.txt)"
options=() launch=(); [ "${nproc:-1}" = 1 ] || launch=(-m torch.distributed.run --standalone --nproc_per_node="$nproc")
for name in $names; do [ -z "${!name:-}" ] || options+=("--$name=${!name}"); done
exec "$python" ${launch[@]+"${launch[@]}"} "$repo/$program.py" ${options[@]+"${options[@]}"} "$@"
