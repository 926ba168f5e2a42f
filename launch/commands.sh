# shellcheck shell=bash
# Shared by tpu_vm.sh, tpu_mig.sh and gke.sh: options, refusals in one line, commands that --dry-run only prints, and what
# the hosts of a TPU slice are asked to do.

DRY_RUN=''
ARGUMENTS=()  # What stands after `--`: flags of training.

refuse() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# `parse 'NAME NAME ...' ARGUMENT...` sets the variable NAME for each --NAME=VALUE.
parse() {
  local known="$1" key
  shift
  while [ $# -gt 0 ]; do
    key="${1%%=*}" key="${key#--}"
    case "$1" in
      --dry-run) DRY_RUN=1 ;;
      --) shift && ARGUMENTS=("$@") && return ;;
      --*=*)
        case " $known " in
          *" $key "*) printf -v "$key" %s "${1#*=}" ;;
          *) refuse "unknown option --$key; known are ${known// /, }, dry-run, and training's flags come after --" ;;
        esac ;;
      *) refuse "unexpected argument $1, expected --NAME=VALUE, and training's flags after --" ;;
    esac
    shift
  done
}

# `need NAME EXAMPLE` refuses a missing --NAME=VALUE.
need() {
  [ -n "${!1}" ] || refuse "--$1 is needed, as --$1=$2"
}

# `parse_slice 'NAME ...' ACTION ARGUMENT...` sets what a script for a TPU slice takes beside its own NAMEs, and `where`.
# shellcheck disable=SC2034  # The scripts read them.
parse_slice() {
  local own="$1"
  shift
  action="${1:-}" project='' zone='' name='' spot='' mount=''
  [ $# -eq 0 ] || shift
  parse "project zone name spot mount $own" "$@"
  case "$action" in
    create | status | install | run | logs | stop | delete) ;;
    *) refuse "unknown action '$action', expected create, status, install, run, logs, stop or delete" ;;
  esac
  need project PROJECT
  need zone us-east5-b
  need name NAME
  where=("--project=$project" "--zone=$zone")
}

# Refuses training without a config and a workdir, before anything is rented.
need_training() {
  case " ${ARGUMENTS[*]-} " in *" --config="*) ;; *) refuse "training needs --config=FILE after --" ;; esac
  case " ${ARGUMENTS[*]-} " in *" --workdir="*) ;; *) refuse "training needs --workdir=DIR after --, seen by all hosts" ;; esac
}

# `quoted WORD...` as one line that a shell reads back.
quoted() {
  local line
  printf -v line ' %q' "$@"
  echo "${line# }"
}

# `run COMMAND...` runs it, or prints it with --dry-run.
run() {
  if [ -n "$DRY_RUN" ]; then quoted "$@"; else "$@"; fi
}

# The hosts of a TPU slice: `send FILE` puts a file on all, `on WORKERS COMMAND` runs a shell's command on `all` or on `0`;
# both are the caller's. What is committed goes there; the images have Python 3.10, and uv brings that of the pins.
install_on_hosts() {
  TEMPORARY=TEMPORARY_FOLDER  # Its name is one that nobody can guess and put a link at.
  [ -n "$DRY_RUN" ] || { TEMPORARY="$(mktemp -d)"; trap 'rm -rf "$TEMPORARY"' EXIT; }
  local archive="$TEMPORARY/diversedit_jax-$1.tar.gz"
  run git archive --format=tar.gz --output="$archive" HEAD
  send "$archive"
  on all "set -e; mkdir -p diversedit_jax; tar -xzf $(basename "$archive") -C diversedit_jax; cd diversedit_jax
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --clear --python 3.11
~/.local/bin/uv pip install --quiet --constraint requirements-cpu.txt --editable '.[tpu]'"
  [ -z "$2" ] || on all "set -e; sudo apt-get install --yes --quiet nfs-common; sudo mkdir -p /mnt/runs
mountpoint -q /mnt/runs || sudo mount -t nfs $(quoted "$2") /mnt/runs"
}

train_on_hosts() {
  need_training
  on all "cd diversedit_jax; PYTHON=.venv/bin/python nohup launch/tpu_host.sh $(quoted "${ARGUMENTS[@]}") \
>> train.log 2>&1 < /dev/null & echo \$! > train.pid"
}

show_log() {
  on 0 'tail -n 100 -f diversedit_jax/train.log'
}

stop_on_hosts() {
  on all "kill -TERM \$(cat diversedit_jax/train.pid)"
}
