# Sourced by scripts of several steps, with their arguments: what all of the steps must know is not found behind them.
case " $* " in *" --save_path"*) echo "error: --save_path: set it in front, save_path=FOLDER bash $(basename "$0")" >&2; exit 2 ;; esac
