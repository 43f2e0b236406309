#!/bin/sh
# Makes the environment build/companions, in which the tests find a real MLflow server and Kubeflow's compiler: they want
# other versions of our libraries, and nothing of ours runs there. $1 is the Python of our environment, which may have uv.
set -eu
python=$1
target=build/companions
packages="mlflow>=3.17,<4 kfp[kubernetes]>=2.14,<3"
made="$target/.made"
if [ "$(cat "$made" 2>/dev/null)" = "$packages" ]; then
    exit 0
fi
rm -rf "$target"
"$python" -m venv "$target"
by_uv() { # which knows nothing of an index that pip is set to
    ! "$python" -m pip config list | grep -qE '\.(index-url|no-index)=' &&
        "$python" -m uv pip install --quiet --python "$target/bin/python" "$@" 2>/dev/null
}

# What $packages holds are words.
# shellcheck disable=SC2086
if ! by_uv $packages && ! "$target/bin/python" -m pip install --quiet --disable-pip-version-check $packages; then
    rm -rf "$target"
    {
        echo "MLflow and Kubeflow's compiler, with which some tests speak, could not be installed into $target."
        echo "They come from the package index: see that this machine reaches it, and run the same command again."
    } >&2
    exit 1
fi
echo "$packages" >"$made"
