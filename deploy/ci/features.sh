#!/bin/sh
# Plans a feature repo's changes on a pull request, and applies them on merge; for any CI that runs a shell.
#
#   features.sh plan [COMMENT]    Show what a merge would change; write the same as Markdown into the file COMMENT.
#   features.sh apply             Apply it. The commit's subject and author are the message, `fs log` shows the commit.
#
# It reads these variables; the token comes from the CI's secret store, never from a file of the repo:
#
#   FS_REGISTRY_TOKEN    for `plan` a viewer's token of the project, for `apply` an editor's: a pull request runs its own
#                        code (features.py), so give it no more than a viewer's.
#   FEATURE_REPO         the folder of feature_store.yaml (default: the working directory).
#   FEATURES_ALLOW       what may happen without a question: --allow-breaking, --allow-destroy, both, or nothing (default).
#
# Exit codes: 0 done, or nothing to do; 1 failed; 2 usage; 3 the merge would be refused, without a flag or by the policy; 4 something else
# was applied meanwhile; 5 the project's policy wants a second person.
set -u

repo=${FEATURE_REPO:-.}
allow=${FEATURES_ALLOW:-}

usage() {
    sed -n '3,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

refused() { # whether a plan, by its first lines in Markdown, is refused by the policy or needs a flag that is not allowed
    sed -n '3{/policy refuses it\.$/p;}' "$1" | grep -q . && return 0
    needs=$(sed -n '1s/^.*; apply needs \(.*\)\.$/\1/p' "$1")
    for flag in --allow-breaking --allow-destroy; do
        case " $needs " in *" $flag "*) case " $allow " in *" $flag "*) ;; *) return 0 ;; esac ;; esac
    done
    return 1
}

case "${1:-} $#" in
"plan 1" | "plan 2" | "apply 1") ;;
*) usage ;;
esac

if [ -z "${FS_REGISTRY_TOKEN:-}" ]; then
    echo "FS_REGISTRY_TOKEN is empty. A CI gives no secrets to a pull request of a fork: somebody who may write to the" >&2
    echo "repository reads the change, pushes its branch there, and opens the pull request from it." >&2
    exit 1
fi

if [ "$1" = apply ]; then
    message=$(git -C "$repo" log -1 --format='%h %s (%an)') || exit 1
    # Without quotes: $allow holds no flag, or one, or two.
    # shellcheck disable=SC2086
    fs apply --yes $allow --repo "$repo" --message "$message"
    code=$?
    case $code in
    4) echo "Something else was applied meanwhile. Run this job again: it plans anew." >&2 ;;
    5) echo "Proposed. When another editor has approved it (fs approve), run this job again." >&2 ;;
    esac
    exit $code
fi

plan=$(mktemp) || exit 1
trap 'rm -f "$plan"' EXIT
fs plan --check --markdown "$plan" --repo "$repo"
code=$?
if [ ! -s "$plan" ]; then
    echo "### Features: the plan failed (exit code $code), as the log of the job says" >"$plan"
fi
if [ $# = 2 ]; then
    cp "$plan" "$2" || exit 1
fi
case $code in
0) exit 0 ;;
3) ;;
*) exit $code ;;
esac
if refused "$plan"; then
    echo "The merge would be refused: set FEATURES_ALLOW to what the plan needs, if that is meant and the policy allows it." >&2
    exit 3
fi
