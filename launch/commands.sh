# shellcheck shell=bash
# Shared by tpu_vm.sh, tpu_mig.sh and gke.sh: options, refusals in one line, and commands that --dry-run only prints.

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
