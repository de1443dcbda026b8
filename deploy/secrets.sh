#!/bin/sh
# Make the credentials of the two stores, each once, as files in the folder given (deploy/secrets). What exists stays.
# The folder is open to its user only. The files in it are open to all, since each container reads its own as a user of its own.
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
cd "$folder"
random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

if [ ! -e postgres_password ]; then
  random 24 > postgres_password
  printf '*:*:*:bellwether:%s\n' "$(cat postgres_password)" > pgpass
fi
if [ ! -e s3_credentials ]; then
  id=$(random 10) key=$(random 24)
  printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$id" "$key" > s3_credentials
  printf '{"identities": [{"name": "bellwether", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],' "$id" "$key" > s3_identities.json
  printf ' "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}\n' >> s3_identities.json
fi
chmod 0444 postgres_password pgpass s3_credentials s3_identities.json
