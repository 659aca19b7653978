# Sourced by train_buildings.sh: puts levir (in tiles of 512), ms_bcd, folders of train and val, and scenes together in root.
root="${root%/}"; aside="$root.part"
if [ ! -d "$root" ]; then
  for folder in "$levir/train" "$levir/val" "$ms_bcd/train" "$ms_bcd/val"; do
    [ -d "$folder/label" ] || { echo "error: no folder $folder/label: set levir and ms_bcd to data sets with train and val" >&2; exit 2; }
  done
  in_repo() { (export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"; exec "$python" -m change "$@"); }
  rm -rf "$aside"
  in_repo prepare levir "$levir" "$aside/parts/levir" --before A --after B --label label --tile 512 --overlap 384 --list_path "$aside/parts/list"
  in_repo samples "$aside/parts/scenes" --count "$count" --size 512 --seed 3
  link() { for kind in A B label; do mkdir -p "$aside/$3/$kind"
    for file in "$1/$kind"/*; do ln -L "$file" "$aside/$3/$kind/$2_${file##*/}" 2>/dev/null || cp "$file" "$aside/$3/$kind/$2_${file##*/}"; done; done; }
  link "$aside/parts/levir/train" levir train; link "$aside/parts/scenes" scene train; link "$ms_bcd/train" ms train
  link "$levir/val" levir val; link "$ms_bcd/val" ms val; rm -rf "$aside/parts"; mv "$aside" "$root"
fi
