#!/bin/sh
# Plans a feature repo's changes on a pull request, and applies them on merge; for any CI that runs a shell.
#
#   features.sh plan [COMMENT]    Show what a merge would change; write the same as Markdown into the file COMMENT.
#   features.sh apply             Apply it. The commit's subject and author are the message, `fs log` shows the commit.
#   features.sh comment CODE      Make the Markdown of what `fs plan --check` printed (standard input, and its exit code).
#
# It reads these variables; the token comes from the CI's secret store, never from a file of the repo:
#
#   FS_REGISTRY_TOKEN    for `plan` a viewer's token of the project, for `apply` an editor's: a pull request runs its own
#                        code (features.py), so give it no more than a viewer's.
#   FEATURE_REPO         the folder of feature_store.yaml (default: the working directory).
#   FEATURES_ALLOW       what may happen without a question: --allow-breaking, --allow-destroy, both, or nothing (default).
#
# Exit codes: 0 done, or nothing to do; 1 failed; 2 usage; 3 the merge would be refused without a flag; 4 something else
# was applied meanwhile; 5 the project's policy wants a second person.
set -u

LIMIT=65000 # GitHub's is 65,536 characters for a comment; these are bytes
repo=${FEATURE_REPO:-.}
allow=${FEATURES_ALLOW:-}

usage() {
    sed -n '3,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

comment() {
    LC_ALL=C awk -v code="$1" -v limit="$LIMIT" '
        { line[NR] = $0 }
        { for (rest = $0; match(rest, /`+/); rest = substr(rest, RSTART + RLENGTH)) if (RLENGTH > ticks) ticks = RLENGTH }
        /^  [-+~] / { title = $0; class = $NF; sub(/^ +/, "", title); sub(/ +[a-z]+$/, "", title); count[class]++ }
        /^ +(read|used) by: / && (class == "breaking" || class == "destructive") {
            sub(/^ +/, ""); broken[++breaks] = title ": " $0
        }
        /^[0-9].*; the worst change is / { summary = $0 }
        function say(text) { print text; used += length(text) + 1 }
        END {
            for (fence = "```"; length(fence) <= ticks; ) fence = fence "`"  # what a pull request writes cannot end it
            if (code == 0) say("### Features: nothing to change")
            else if (code != 3) say("### Features: the plan failed (exit code " code ")")
            else say("### Features: " summary)
            say("")
            split("destructive breaking rebuild compatible metadata", classes, " ")
            for (i = 1; i <= 5; i++) if (count[classes[i]]) {
                text = text (text == "" ? "" : ", ") count[classes[i]] " " classes[i]
            }
            if (text != "") { say("Changes by class: " text "."); say("") }
            if (breaks) {
                say("Would break:"); say(fence)
                for (i = 1; i <= breaks && used + length(broken[i]) < limit / 4; i++) say(broken[i])
                if (i <= breaks) say("… and " breaks - i + 1 " more")
                say(fence); say("")
            }
            say(fence)
            for (i = 1; i <= NR && used + length(line[i]) + 200 < limit; i++) say(line[i])
            say(fence)
            if (i <= NR) say(NR - i + 1 " more lines do not fit here: the log of the job has the whole plan.")
        }
    '
}

refused() { # whether the plan of a file needs a flag that is not allowed
    needs=$(sed -n 's/^[0-9].*; the worst change is .*; apply needs \(.*\)\.$/\1/p' "$1")
    for flag in --allow-breaking --allow-destroy; do
        case " $needs " in *" $flag "*) case " $allow " in *" $flag "*) ;; *) return 0 ;; esac ;; esac
    done
    return 1
}

case "${1:-} $#" in
"plan 1" | "plan 2" | "apply 1") ;;
"comment 2") comment "$2"; exit ;;
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
fs plan --check --repo "$repo" >"$plan" 2>&1
code=$?
cat "$plan"
if [ $# = 2 ]; then
    comment $code <"$plan" >"$2" || exit 1
fi
case $code in
0) exit 0 ;;
3) ;;
*) exit $code ;;
esac
if refused "$plan"; then
    echo "The merge would be refused: set FEATURES_ALLOW to what the plan needs, if that is meant." >&2
    exit 3
fi
