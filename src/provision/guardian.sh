# The guardian of one server: it stays in the background, and when the pipe on its standard input closes, for
# whatever reason, it ends the server and leaves. POSIX sh; the arguments are the stop signal, the seconds that
# the server gets to heed it, the log, a folder to remove in the end (or nothing), and the server's command.
#
# Standard error comes as a locked file. Everything started here keeps it open as 4, so the lock on the data
# lasts until the last process of the server is gone.
signal=$1 patience=$2 log=$3 remove=$4
shift 4
exec 3<&0 </dev/null 4>&2 2>>"$log"

"$@" >&2 3<&- &
server=$!
# Only now: the server must not inherit that it is ignored.
trap '' PIPE

# A line or the end of the input: stop the server, in the end by force.
(
    read -r word <&3
    trap 'kill "$nap"; exit' TERM
    kill -s "$signal" "$server"
    sleep "$patience" 4>&- &
    nap=$!
    wait "$nap"
    kill -s KILL "$server"
) >/dev/null 2>&1 &
stopper=$!

# Only now: a fork starts with its parent's traps, and would lose a signal that comes before it has dropped them.
trap 'kill -s "$signal" "$server"' HUP INT TERM
echo "$server"
wait "$server"
status=$?
# Above 128 it may only be a caught signal that interrupted the wait.
while [ "$status" -gt 128 ] && kill -s 0 "$server" 2>/dev/null; do
    wait "$server"
    status=$?
done
{ kill "$stopper"; wait "$stopper"; } 2>/dev/null
echo "$status"
exec >&-

while read -r word <&3; do
    if [ "$word" = keep ]; then remove=; fi
done
if [ -n "$remove" ]; then
    cd /
    # Stragglers of a killed server may still write.
    rm -rf "$remove" 2>/dev/null || { sleep 1; rm -rf "$remove"; }
fi
exit 0
