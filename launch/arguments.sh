# Sourced by the launch scripts: --help, --dry-run, arguments, messages.
#
#   parse_arguments "nodes=1 zone! spot?" "$@"
#
# leaves a variable for every name, its value after the = unless given; zone!
# must be given; spot? is a switch, 0 or 1. A - in a name is a _ in its
# variable. --config, --workdir and --config.field are gc_jax.main's, and
# collected in training; both of the first are required, and repeated in config
# and workdir. --dry-run, which every script takes, makes `run` print what it
# would do. Keeps to what bash 3.2 knows, that of macOS.

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

print_help() {
  # The comment at the top, without the line that names the interpreter.
  sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$1"
}

# Prints a command as it can be typed, or runs it.
run() {
  if ((dry_run)); then
    show "$@"
  else
    "$@"
  fi
}

show() {
  local word line=""
  for word in "$@"; do
    # %q hides what is plain but for a comma or an = behind backslashes.
    if [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  echo "${line# }"
}

parse_arguments() {
  # The names of options are the caller's: what is local has another.
  local _specification=$1 _option _name _value _argument _known _usage=""
  shift
  dry_run=0 training=() config="" workdir=""
  for _option in $_specification; do
    _name=${_option%%[=!?]*}
    case "$_option" in
      *=*) _value=${_option#*=} _usage+=" --$_name=..." ;;
      *\?) _value=0 _usage+=" [--$_name]" ;;
      *) _value="" _usage+=" --$_name=..." ;;
    esac
    printf -v "${_name//-/_}" %s "$_value"
  done
  for _argument in "$@"; do
    case "$_argument" in
      --help | -h)
        print_help "$0"
        exit 0
        ;;
      --dry-run) dry_run=1 && continue ;;
      --multihost | --multihost=*)
        fail "$_argument is added where it belongs; leave it out."
        ;;
      --config=?* | --workdir=?* | --config.?*=*)
        case "$_argument" in
          --config=*) config=${_argument#*=} ;;
          --workdir=*) workdir=${_argument#*=} ;;
        esac
        training+=("$_argument")
        continue
        ;;
    esac
    _known=0
    for _option in $_specification; do
      _name=${_option%%[=!?]*}
      case "$_option:$_argument" in
        *\?:"--$_name") _value=1 ;;
        *\?:"--$_name="*)
          fail "--$_name is a switch, and takes no value; got '$_argument'." \
            "Write --$_name, or leave it out."
          ;;
        *:"--$_name="?*) _value=${_argument#*=} ;;
        *:"--$_name" | *:"--$_name=")
          fail "--$_name needs a value; got '$_argument'. Write --$_name=VALUE."
          ;;
        *) continue ;;
      esac
      printf -v "${_name//-/_}" %s "$_value"
      _known=1
    done
    ((_known)) || fail "Unknown argument '$_argument'. Known:$_usage" \
      "--dry-run --help, and --config=FILE --workdir=DIR --config.FIELD=VALUE" \
      "for gc_jax.main."
  done
  [[ -n "$config" ]] ||
    fail "--config=FILE must say what to train, for example" \
      "--config=configs/quickstart.py; none came. Add it, or see --help."
  [[ -n "$workdir" ]] ||
    fail "--workdir=DIR must say where to write; none came. Add it."
  for _option in $_specification; do
    [[ "$_option" == *! ]] || continue
    _name=${_option%!}
    _value=${_name//-/_}
    [[ -n "${!_value}" ]] || fail "--$_name must be given; it was not." \
      "Add --$_name=VALUE; --help says what it is."
  done
}

# require_number NAME LEAST: the option must be a whole number, at least so.
require_number() {
  local _variable=${1//-/_}
  if [[ ! "${!_variable}" =~ ^(0|[1-9][0-9]{0,8})$ ]] ||
    ((${!_variable} < $2)); then
    fail "--$1 must be a whole number of at least $2;" \
      "got '${!_variable}'. Write for example --$1=$(($2 > 1 ? $2 : 1))."
  fi
}

# require_match NAME PATTERN MEANING: the option must match the whole pattern.
require_match() {
  local _variable=${1//-/_}
  [[ "${!_variable}" =~ ^($2)$ ]] ||
    fail "--$1 must be $3; got '${!_variable}'. Change it."
}

# The workers see no common disk, and are gone after a preemption.
require_bucket() {
  [[ "$workdir" =~ ^gs://[a-z0-9][a-z0-9._-]+(/.*)?$ ]] ||
    fail "--workdir must be a folder of a bucket, gs://BUCKET/FOLDER: every" \
      "worker writes its part of a checkpoint there, and the disks of the" \
      "workers are lost when they are preempted; got '$workdir'. Make a" \
      "bucket (gcloud storage buckets create) in the zone's region."
}

# Only what is in the source is on the workers.
require_shipped_config() {
  [[ "$config" == configs/* && "$config" != */../* && -f "${config%%:*}" ]] ||
    fail "--config must be a file of configs/, which goes to the workers;" \
      "got '$config'. Put yours there, or correct the name."
}

# Prints where jax keeps what it compiles: what goes on after a preemption finds
# its programs there. For GPUs and TPUs alone, as XLA refuses what it kept for a
# CPU (openxla/xla#44565).
compilation_cache() {
  local _folder=$workdir/compiled
  # gc_jax.main knows what ~ is behind an =, jax does not.
  [[ "$_folder" != \~/* ]] || _folder=$HOME/${_folder:2}
  echo "JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$_folder}"
}

# The virtual environment that is active, or one made from requirements.txt.
use_environment() {
  if [[ -z "${VIRTUAL_ENV:-}" ]]; then
    # shellcheck source=launch/environment.sh
    source launch/environment.sh
    ensure_environment requirements.txt
  fi
}
