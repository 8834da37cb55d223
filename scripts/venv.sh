#!/bin/sh
# Makes .venv ready, or says in one line what is missing. Usage: scripts/venv.sh chat|dev
# `chat` installs what glmchat needs to run, `dev` also what its tests need. PYTHON names the interpreter.
# Does nothing when the pinned versions, the folder and the compiler are those of the last complete run.
# Writes to stderr only: stdin and stdout belong to the program that runs next.
set -eu
cd "$(dirname "$0")/.."
exec </dev/null

case ${1-} in
    chat) extras='' ;;
    dev) extras='[dev]' ;;
    *) echo 'usage: scripts/venv.sh chat|dev' >&2; exit 2 ;;
esac

venv=.venv
log=$venv/install.log
unfinished=$venv/.unfinished  # there while pip runs: what a killed pip leaves cannot be trusted

fail() {
    printf 'glmchat set-up: %s\n' "$1" >&2
    exit 1
}

say() {  # a line that the next one overwrites; nothing where stderr is not a terminal
    [ ! -t 2 ] || printf '\r\033[K%.78s' "$1" >&2
}

state() {  # all that an installation depends on; the programs in a venv hold its absolute path
    pwd
    cksum pyproject.toml constraints.txt hatch_build.py glmchat/engine/kernels/*.[ch]
    command -v "${CC:-gcc}" || :  # what compiles the kernels
}

ready() {
    [ -x $venv/bin/python ] && [ "$(cat $venv/.ready-"$1" 2>/dev/null)" = "$(state)" ] || return 1
    [ -z "${PYTHON-}" ] || [ "$(cat $venv/.python)" = "$PYTHON" ]
}

sound() {  # can pip go on from what is there?
    [ ! -e $unfinished ] && [ "$(cat $venv/.place 2>/dev/null)" = "$(pwd)" ] || return 1
    [ -z "${PYTHON-}" ] || [ "$(cat $venv/.python)" = "$PYTHON" ] || return 1
    $venv/bin/python -c 'import pip' 2>/dev/null
}

find_python() {  # the first one that will do, into $python; else what is wrong, into $why
    if [ -n "${PYTHON-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11 python3.10 python; fi
    why=''
    for python; do
        version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            why=${why:-"$python is Python $version; install 3.10 or newer"}
        elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
            why="$python lacks venv; add it (Debian, Ubuntu: apt install python${version%.*}-venv)"
        else
            return 0
        fi
    done
    why=${why:-"${PYTHON:-python3} does not run; install Python 3.10 or newer"}
    return 1
}

new_venv() {
    find_python || fail "$why, or name another Python: make PYTHON=/path/to/python3.11 ..."
    say "Making $venv with $python ($version)"
    rm -rf $venv
    "$python" -m venv $venv >&2 || fail "$python -m venv failed; its own words are above."
    echo "${PYTHON-}" >$venv/.python
    pwd >$venv/.place
}

explain() {  # why pip failed and what to do, from its log
    if grep -q 'No space left on device' $log; then
        echo 'the disk is full; free some space'
    elif grep -qE 'NewConnectionError|NameResolution|Connect(ion)?Timeout|ReadTimeout|ProxyError|Connection(Reset|Refused)|hatchling.*from versions: none' $log; then
        echo 'pip cannot reach the package index; check the network, HTTPS_PROXY and PIP_INDEX_URL'
    else
        reason=$(grep '^ *ERROR' $log | tail -n 1 | cut -c 1-200)
        echo "pip says \"${reason:-nothing}\"; mend that"
    fi
}

if ready dev || ready "$1"; then exit 0; fi
sound || new_venv

[ -t 2 ] || echo "Installing glmchat into $venv (once; it takes minutes) ..." >&2
: >$unfinished
rm -f $venv/.ready-* $venv/.failed
{ $venv/bin/python -m pip install -c constraints.txt -e ".$extras" 2>&1 || : >$venv/.failed; } |
    tee $log | while read -r line; do say "$line"; done
say ''
rm -f $unfinished
[ ! -e $venv/.failed ] || fail "$(explain), then run make again (all that pip said: $log)."
state >$venv/.ready-"$1"
