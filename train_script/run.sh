# shellcheck shell=bash
# Sourced by every other script. Runs the programs with the variables that are set.
#
# A variable with the name of an option of train.py or test.py is passed on as that option. The
# values in a script are defaults: the line : "${epoch:=1000}" sets epoch only if it is not set yet.
# python is the interpreter; by default, change/common/environment.py finds one or sets one up.
# nproc is the number of processes, which torchrun starts.

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

train_options=(
  recipe root list trainsize cropsize color_setting scale symmetries swap shift unchanged degrade
  epoch lr encoder_lr weight_decay decay_norms eps train_batchsize grad_accum
  schedule power warmup model dice prior keep ema seed
  val_batchsize val_epoch decay_epoch backbone width refine cross within patch k beta l1 l2
  save_path best_name save_freq save_minutes resume checkpoint_path pretrained
  mixed_precision_training amp deterministic compile cuda_graphs kept_activations cache cache_path
  device continue_run workers resolution bands rgb_bands classes
)
test_options=(
  test_root list checkpoint_path testsize test_batchsize protocol tile window overlap tta threshold
  check amp device save_path save_result save_result_path save_iou_map save_iou_map_path save_panels
  save_panels_path report compile workers classes
)
script_variables=(
  python nproc epoch1 epoch2 epoch3 count data levir ms_bcd out seeds folds lists test_amp
)

# Remember which variables the user has set, before a script sets its defaults.
if [ -z "${prx_from_user+set}" ]; then
  prx_from_user=" "
  for prx_name in "${train_options[@]}" "${test_options[@]}" "${script_variables[@]}"; do
    if [ -n "${!prx_name:-}" ]; then
      prx_from_user="$prx_from_user$prx_name "
    fi
  done
fi

# from_user NAME: whether the user has set this variable.
from_user() {
  [[ "$prx_from_user" == *" $1 "* ]]
}

# log_environment NAME...: log those of the variables that the user has set, once for a script and
# all scripts that it calls.
log_environment() {
  local name
  local line=""
  if [ -n "${PRX_ENVIRONMENT_LOGGED:-}" ]; then
    return 0
  fi
  for name in "$@"; do
    if from_user "$name" && [ -n "${!name:-}" ]; then
      line="$line, $name=${!name}"
    fi
  done
  if [ -n "$line" ]; then
    echo "from the environment: ${line#, }" >&2
  fi
  export PRX_ENVIRONMENT_LOGGED=1
}

# find_python: set python, unless it is already set.
find_python() {
  if [ -z "${python:-}" ]; then
    python="$(cd "$repo" && python3 -m change.common.environment requirements.txt)"
  fi
}

# set_options NAME...: fill the array options with --NAME=VALUE of the variables that are set.
set_options() {
  local name
  options=()
  for name in "$@"; do
    if [ -n "${!name:-}" ]; then
      options+=("--$name=${!name}")
    fi
  done
}

# start_from_pass_before: set checkpoint_path, unless it is already set, to the weights of the
# previous pass in save_path: those of pass 2 if cross is set, else those of pass 1.
start_from_pass_before() {
  case "${cross:-False}" in
    [Tt]rue | 1 | yes | on)
      : "${checkpoint_path:=$save_path/2.pth}"
      ;;
    *)
      : "${checkpoint_path:=$save_path/1.pth}"
      ;;
  esac
}

# refuse_arguments ARGUMENT...: exit if --save_path or --pretrained is among the arguments of a
# script of several passes. The script itself needs save_path, and only pass 1 uses pretrained.
refuse_arguments() {
  local argument
  local name
  for argument in "$@"; do
    case "${argument%%=*}" in
      --save_path | --pretrained)
        name="${argument%%=*}"
        name="${name#--}"
        echo "error: --$name: set it before the command: $name=... bash $(basename "$0")" >&2
        exit 2
        ;;
    esac
  done
}

# run_and_wait SIGNAL COMMAND [ARGUMENT...]: run a function that ends with exec, or exec PROGRAM,
# and return its exit code. If SIGTERM comes meanwhile, send it SIGNAL, wait until it has ended, and
# exit with 143. Programs are sent INT, because a supervisor may have sent them TERM as well: a
# second TERM would end them without saving.
run_and_wait() {
  local code=0
  local child
  local stopped=""
  local signal="$1"
  shift
  (
    trap - INT # bash lets background jobs ignore it
    "$@"
  ) &
  child=$!
  trap '[ -n "$stopped" ] || kill -s "$signal" "$child" || true; stopped=yes' TERM
  trap : INT # a terminal sends it to the child as well
  while true; do
    code=0
    wait "$child" || code=$?
    if ! kill -0 "$child" 2>/dev/null; then
      break
    fi
  done
  trap - TERM INT
  if [ -n "$stopped" ]; then
    exit 143
  fi
  return "$code"
}

# run_program train|test [ARGUMENT...]: replace this process by train.py or test.py.
run_program() {
  local program="$1"
  local launcher=()
  local name
  shift
  if [ -n "${continue_run:-}" ]; then
    # A continued run keeps its folder and its start. The defaults of the script are for a new run.
    for name in save_path checkpoint_path; do
      if ! from_user "$name"; then
        unset "$name"
      fi
    done
  fi
  if [ "$program" = train ]; then
    log_environment python nproc "${train_options[@]}"
    set_options "${train_options[@]}"
  else
    log_environment python nproc "${test_options[@]}"
    set_options "${test_options[@]}"
  fi
  if [ "${nproc:-1}" != 1 ]; then
    launcher=(-m torch.distributed.run --standalone "--nproc_per_node=$nproc")
  fi
  find_python
  set -- "$repo/$program.py" ${options[@]+"${options[@]}"} "$@"
  exec "$python" ${launcher[@]+"${launcher[@]}"} "$@"
}

# run_module MODULE [ARGUMENT...]: run python -m MODULE of this clone. It works from any folder.
run_module() {
  find_python
  run_and_wait INT exec env PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}" "$python" -m "$@"
}

# run_verb experiment FILE [ARGUMENT...]: replace this process by python -m change experiment FILE.
# run_verb finetune DATA [ARGUMENT...]: replace this process by python -m change finetune DATA.
run_verb() {
  local verb="$1"
  local subject="$2"
  local names=(nproc "${train_options[@]}")
  shift 2
  if [ "$verb" = experiment ]; then
    names+=(out seeds folds lists test_amp)
  fi
  log_environment python data "${names[@]}"
  if [ "$verb" = finetune ]; then
    unset root  # DATA is the root
  fi
  set_options "${names[@]}"
  find_python
  export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
  exec "$python" -m change "$verb" "$subject" ${options[@]+"${options[@]}"} "$@"
}
