#!/bin/bash
# Sets Stalwart up at its first start: hostname, default domain, store. Stalwart answers with the permanent administrator's
# login, which is kept beside its configuration, and takes effect with the next start; so this one ends.
set -euo pipefail
configuration=/etc/stalwart/config.json
login=/etc/stalwart/administrator.json
if [[ -s $configuration ]]; then
  echo "Stalwart is set up already"
  exit 0
fi
umask 077

ask() { # PATH [BODY]: the answer's body; fails unless it is 200
  local authorization line
  authorization=$(printf %s "$STALWART_RECOVERY_ADMIN" | base64 -w0)
  exec 3<>/dev/tcp/127.0.0.1/8080 || return 1
  if [[ $# -eq 2 ]]; then
    printf 'POST %s HTTP/1.0\r\nAuthorization: Basic %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' \
      "$1" "$authorization" "${#2}" "$2" >&3
  else
    printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&3
  fi
  read -r line <&3
  [[ $line == *" 200 "* ]] || { echo "$1: $line" >&2; exec 3>&-; return 1; }
  while read -r line <&3 && [[ $line != $'\r' ]]; do :; done
  cat <&3
  exec 3>&-
}

"${STALWART:-stalwart}" --config "$configuration" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in {1..60}; do
  if ask /healthz/live >/dev/null 2>&1; then break; fi
  kill -0 "$server" || { echo "Stalwart ended before it listened; its log is above" >&2; exit 1; }
  sleep 1
done

answer=$(ask /jmap '{"using": ["urn:ietf:params:jmap:core", "urn:stalwart:jmap"], "methodCalls": [["x:Bootstrap/set",
  {"update": {"singleton": {"serverHostname": "'"$STALWART_HOSTNAME"'", "defaultDomain": "'"$STALWART_DEFAULT_DOMAIN"'",
  "requestTlsCertificate": false, "generateDkimKeys": true,
  "tracer": {"@type": "Stdout", "enable": true, "level": "info"}}}}, "0"]]}')
if [[ $answer != *'"secret"'* ]]; then
  echo "Stalwart was not set up: $answer" >&2
  exit 1
fi
printf '%s\n' "$answer" >"$login"
kill "$server"
trap - EXIT
wait "$server" || true
echo "Stalwart is set up; the administrator's login is in $login"
