# The end of a gateway (preStop): drain.sh LEAST_SECONDS MOST_SECONDS. Runs in Envoy's image, which has bash and no curl.
#
# SIGTERM alone cuts streams. So Envoy is told to drain: each answer from now on closes its connection, while Service
# endpoints go. Then this waits, LEAST_SECONDS in any case, until no request is left, at most MOST_SECONDS.
#
# Port 9902 of loopback answers these two requests and no other; all else of the admin interface is behind a Unix socket.

ask() {
  exec 3<>/dev/tcp/127.0.0.1/9902 || return
  printf '%s HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1" >&3
  timeout 2 cat <&3
}

(ask 'POST /drain') >/dev/null
sleep "$1"
while ((SECONDS < $2)); do
  answer=$(ask 'GET /active')
  # Without an answer there may be requests: wait on.
  [[ $answer =~ http\.gateway\.downstream_rq_active:\ ([0-9]+) && ${BASH_REMATCH[1]} == 0 ]] && break
  sleep 1
done
