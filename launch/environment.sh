# Sourced by the launch scripts: makes .venv and puts it on the PATH.
#
#   ensure_environment requirements.txt [FOLDER, in place of .venv]
#
# Installs what the file names, with the build of jax this machine has hardware
# for. A second call finds the work done, unless the file or the build changed.
# Settings: PYTHON (interpreter to build from), JAX_BUILD (cpu, cuda12, cuda13
# or tpu, instead of looking).

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "gc_jax needs Python 3.11 or later, and none of" \
    "'${PYTHON:-python3 python3.13 python3.12 python3.11}' is one." \
    "Install it, or name it: PYTHON=/path/to/python $0" >&2
  return 1
}

find_jax_build() {
  if [[ -n "${JAX_BUILD:-}" ]]; then
    case "$JAX_BUILD" in
      cpu | cuda12 | cuda13 | tpu) echo "$JAX_BUILD" ;;
      *)
        echo "JAX_BUILD=$JAX_BUILD must be cpu, cuda12, cuda13 or tpu." >&2
        return 1
        ;;
    esac
    return
  fi
  local cuda
  cuda=$(nvidia-smi 2>/dev/null |
    sed -n 's/.*CUDA[^:]*Version: *\([0-9]*\).*/\1/p' | head -n 1)
  if [[ -n "$cuda" ]]; then
    if ((cuda >= 13)); then echo cuda13; else echo cuda12; fi
    return
  fi
  # Google's PCI vendor, and the device ids that jax takes for a TPU.
  local device
  for device in /sys/bus/pci/devices/*; do
    [[ "$(cat "$device/vendor" 2>/dev/null)" == 0x1ae0 ]] || continue
    case "$(cat "$device/device" 2>/dev/null)" in
      0x0027 | 0x0056 | 0x005e | 0x0062 | 0x0063 | 0x006f | 0x0076)
        echo tpu
        return
        ;;
    esac
  done
  echo cpu
}

ensure_environment() {
  local requirements=$1 folder=${2:-.venv} python build stamp wanted
  local jax=()
  build=$(find_jax_build)
  stamp=$folder/.installed-${requirements//\//-}
  wanted="$build $(cat requirements.txt "$requirements" | cksum)"
  if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    python=$(find_python)
    [[ "$build" == cpu ]] || jax=("jax[$build]")
    echo "Installing $requirements into $folder, jax for $build ..." >&2
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
      -r "$requirements" "${jax[@]}"
    # Last, so that an interrupted installation is taken up again.
    echo "$wanted" >"$stamp"
  fi
  PATH="$PWD/$folder/bin:$PATH"
}
