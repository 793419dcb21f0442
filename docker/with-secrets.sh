#!/bin/sh
# Runs a command with secrets in its environment: for each NAME_FILE that names a file in /run/secrets, NAME is set to
# the content of that file. Secrets are then neither in an image nor in a compose file nor in what `docker inspect` shows.
set -eu
for name in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)_FILE=.*/\1/p'); do
    eval "file=\${${name}_FILE}"
    case "${file}" in
        "${SECRETS_FOLDER:-/run/secrets}"/*)
            eval "${name}=\$(cat \"\${file}\")"
            export "${name?}"
            ;;
    esac
done
exec "$@"
