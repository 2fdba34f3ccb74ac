#!/bin/sh
# Make the secret files that compose.yaml names, in docker/secrets or in the folder given. What is
# there stays. Random ones are filled; the keys of other services are left empty for you.
set -eu

folder=${1:-$(dirname "$0")/secrets}
mkdir -p "${folder}"
chmod 700 "${folder}" # of the host's users, only its owner gets at the files in it

random() { # random BYTES: as URL-safe base64
    head -c "$1" /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n'
}

put() { # put NAME VALUE
    [ ! -e "${folder}/$1" ] || return 0
    printf '%s' "$2" > "${folder}/$1"
    chmod 644 "${folder}/$1" # containers read it as a user that this host does not know
    echo "made ${folder}/$1"
}

put prefect-login "slm:$(random 24)"
put prefect-db-password "$(random 24)"
put store-db-password "$(random 24)"
put redis-password "$(random 24)"
put docket-url "redis://:$(cat "${folder}/redis-password")@redis:6379/1"
put encryption-key "$(random 32)"
put server-api-key "$(random 24)"
for name in azure-api-key openai-api-key langfuse-secret-key hf-token notify-url; do
    put "${name}" ""
done
echo "To fill: azure-api-key or openai-api-key. Sign in with the content of prefect-login."
