#!/bin/sh
# Every file in the secrets folder becomes the environment variable of its name; then the command
# runs. So no secret stands in an image, a compose file or `docker inspect`.
set -eu

for file in "${SECRETS_DIR:-/run/secrets}"/*; do
    name=${file##*/}
    case ${name} in
        *[!A-Z0-9_]* | [0-9]*) continue ;; # no name of a variable; nothing there leaves "*"
    esac
    value=$(cat "${file}")
    # An empty file is a secret that nobody gave: the variable stays unset.
    [ -z "${value}" ] || export "${name}=${value}"
done
unset SECRETS_DIR file name value

exec "$@"
