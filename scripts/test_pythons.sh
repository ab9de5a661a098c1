#!/usr/bin/env bash
# The tests on other Pythons and other packages than those of .venv: test_pythons.sh all | lowest | jax | torch [pytest's
# arguments]
#
# lowest: the unit tests, on the lowest version of each package that pyproject.toml allows (requirements-lowest.lock).
# jax: the tests of Keras tasks with Keras on JAX (requirements-jax.lock beside requirements.lock).
# torch: the tests of the PyTorch example (requirements-torch.lock beside requirements.lock; some gigabytes on Linux).
# all: every test, on the oldest and on the newest Python that is on this machine; on the oldest one with the lowest
# versions too, and each time with Spark (requirements-spark.lock). A version of Python that is not here is named.
#
# Each environment lies in .venvs/ and is made anew when its lock has changed. Pythons are looked for on the PATH and
# in pyenv's folder; PYTHONS="/path/to/python3.13 ..." names others.
set -euo pipefail
cd "$(dirname "$0")/.."

supported=(3.11 3.12 3.13)

say() { echo "--> $*"; }

# The first Python of a version that is fit to make a venv; nothing where there is none.
python_of() {
  local version=$1 candidate
  for candidate in ${PYTHONS:-} "python$version" python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python3; do
    if "$candidate" -c "import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

# Install into an environment; only when that fails, show what pip said.
install() {
  local folder=$1 output
  output=$(mktemp)
  if ! "$folder/bin/python" -m pip install -q --disable-pip-version-check "${@:2}" >"$output" 2>&1; then
    tail -n 20 "$output" >&2
    exit 2
  fi
  rm -f "$output"
}

# Make the environment of a Python and one or two locks, and print where it is.
environment() {
  local version=$1 python=$2 folder lock
  shift 2
  folder=.venvs/$version-$(basename "${!#}" .lock)
  if ! cat "$@" | cmp -s - "$folder/installed.lock" || [[ pyproject.toml -nt $folder/installed.lock ]]; then
    say "installing the packages of $* for Python $version (about two minutes)" >&2
    rm -rf "$folder"
    "$python" -m venv "$folder"
    for lock in "$@"; do install "$folder" --require-hashes -r "$lock"; done
    install "$folder" --no-deps --no-build-isolation -e .
    cat "$@" >"$folder/installed.lock"
  fi
  echo "$folder"
}

# Run tests in the environment of a Python and a lock, or of two locks joined by a comma.
run_tests() {
  local version=$1 locks folder
  IFS=, read -ra locks <<<"$2"
  shift 2
  folder=$(environment "$version" "$(python_of "$version")" "${locks[@]}")
  say "Python $version with ${locks[*]}: $*"
  "$folder/bin/python" -m pytest -p no:cacheprovider "$@"
}

here=() missing=()
for version in "${supported[@]}"; do
  if [[ -n $(python_of "$version") ]]; then here+=("$version"); else missing+=("$version"); fi
done
[[ ${#missing[@]} == 0 ]] || say "not on this machine, and so not tried: Python ${missing[*]}"
oldest=${here[0]}
newest=${here[-1]}
everything=(-n 3 --dist loadfile --no-loadscope-reorder -q)

case ${1:-} in
  lowest) run_tests "$oldest" requirements-lowest.lock -n 2 -q tests/unit tests/test_architecture.py "${@:2}" ;;
  jax)
    export KERAS_BACKEND=jax
    # numpy warns of what a variable of Keras on JAX gives it.
    run_tests "$oldest" requirements.lock,requirements-jax.lock -n 2 -q \
      -W "ignore:__array__ implementation:DeprecationWarning" tests/worker "${@:2}"
    ;;
  torch) run_tests "$oldest" requirements.lock,requirements-torch.lock -q tests/worker/test_pytorch_example.py "${@:2}" ;;
  all)
    # The environment has the name of its last lock.
    run_tests "$oldest" requirements-spark.lock,requirements-lowest.lock "${everything[@]}" "${@:2}"
    for version in $(printf '%s\n' "$oldest" "$newest" | uniq); do
      run_tests "$version" requirements-spark.lock,requirements.lock "${everything[@]}" "${@:2}"
    done
    ;;
  *)
    sed -n '2,12s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
