#!/usr/bin/env bash
# Sets up what the given extras need: scripts/setup.sh VENV EXTRAS, e.g. `scripts/setup.sh .venv sim,train,dev`.
# A virtual environment with the package (editable), and a headless OpenGL. Running it again changes nothing.
# PYTHON chooses the interpreter; pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS …) choose where packages come from.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
extras=$2

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 2
}

# MuJoCo 3.3.2 has wheels up to Python 3.13.
suitable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}
may_install() {
    command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}
apt_install() {
    as_root apt-get update -qq </dev/null
    as_root apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}

if [ ! -x "$venv/bin/python" ] || ! suitable "$venv/bin/python"; then
    python=""
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if suitable "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] ||
        fail "no Python 3.11, 3.12 or 3.13 among: ${PYTHON:-python3 python3.13 python3.12 python3.11}; install one and name it: make install PYTHON=/path/to/python3.12"
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
        may_install || fail "$python cannot make virtual environments; type: sudo apt-get install $package"
        say "Installing $package"
        apt_install "$package"
    fi
    say "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

say "Installing vlaad-ray[$extras]: some minutes and about 4 GB at first; the log is $venv/install.log"
start=$SECONDS
if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --editable ".[$extras]" </dev/null 2>&1 | tee "$venv/install.log" |
    sed -un 's/^ *Downloading \(.* ([0-9.]\{3,\} [MG]B)\).*/    \1/p'; then
    grep -v '^ \|^Collecting\|^WARNING: Location' "$venv/install.log" | tail -n 20 >&2
    fail "pip could not install the packages; its last lines are above"
fi
case ",$extras," in
*,annotate-cpu,*)
    # vLLM may bring builds of these for CUDA, which fail to import beside a CPU build of torch. Qwen2.5-VL's processor
    # needs torchvision's Python part alone, and this version imports without its compiled part.
    if ! "$venv/bin/python" -c 'import torchvision' 2>/dev/null; then
        say "Replacing a torchvision that does not fit this torch"
        "$venv/bin/python" -m pip uninstall --yes --quiet torchaudio torchcodec
        "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps torchvision==0.16.2 </dev/null
    fi
    ;;
esac
case ",$extras," in
*,dev,*)
    # What drives our policy server in the tests. It pins numpy below 2, with which pyarrow fails to import; it works with
    # numpy 2 all the same.
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps openpi-client==0.1.2 </dev/null ||
        fail "pip could not install openpi-client; its last lines are above"
    ;;
esac
say "Packages are in place after $((SECONDS - start)) s"

case ",$extras," in *,sim,*) ;; *) exit 0 ;; esac

libraries="libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libglib2.0-0"
renders() { MUJOCO_GL=egl "$venv/bin/python" -m vlaad_ray.envs.check_rendering >"$venv/rendering.log" 2>&1; }
if ! renders; then
    may_install || {
        tail -n 1 "$venv/rendering.log" >&2
        fail "headless OpenGL (EGL) does not work; type: sudo apt-get update && sudo apt-get install -y $libraries"
    }
    say "Installing OpenGL libraries: $libraries"
    # shellcheck disable=SC2086
    apt_install $libraries
    renders || {
        cat "$venv/rendering.log" >&2
        fail "headless OpenGL (EGL) still does not work with $libraries installed; see the error above"
    }
fi
say "Headless rendering works: $(tail -n 1 "$venv/rendering.log")"
