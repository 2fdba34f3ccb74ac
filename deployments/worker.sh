#!/bin/sh
# Run a Prefect worker that stops gently: `worker.sh --pool gpu --limit 1`.
#
# Asked to stop, a Prefect worker kills its runs at once and leaves them "Running" for good. This
# script asks the runs first: a training saves its checkpoint, the run ends as Crashed, and only
# then does the worker end. A run that does not end within WORKER_GRACE_SECONDS is left to the
# worker, and so to a kill.
set -u

worker=

runs() { # ids of the worker's living child processes
    # One that ends while it is read is no error.
    cat /proc/[0-9]*/status 2>/dev/null | awk -v parent="${worker}" '
        /^State:/ { state = $2 } /^Pid:/ { pid = $2 }
        /^PPid:/ { if ($2 == parent && state != "Z") print pid }'
}

stop() {
    trap '' TERM INT
    asked=' '
    end=$(($(date +%s) + ${WORKER_GRACE_SECONDS:-120}))
    # Asked again and again, for the worker may begin another run meanwhile.
    while [ -n "$(runs)" ] && [ "$(date +%s)" -lt "${end}" ]; do
        for run in $(runs); do
            case ${asked} in
                *" ${run} "*) ;;
                *) kill -TERM "${run}" 2>/dev/null && asked="${asked}${run} " ;;
            esac
        done
        sleep 0.2
    done
    kill -TERM "${worker}" 2>/dev/null
    wait "${worker}"
    exit $?
}

trap stop TERM INT
# In the background a shell makes a command deaf to SIGINT, by which Prefect stops its worker.
env --default-signal=INT prefect worker start --type process "$@" &
worker=$!
wait "${worker}"
