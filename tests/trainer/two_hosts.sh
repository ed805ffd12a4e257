#!/usr/bin/env bash
# two_hosts.sh COMMAND...: runs COMMAND where two hosts can be reached, 10.77.0.1 (this one, called
# narrow0) and 10.77.0.2 (narrow1): network namespaces joined by a veth pair, each with a host name
# of its own. $TWO_HOSTS_RSH enters narrow1 as ssh would. Needs iproute2, and root or user
# namespaces. Without them it says so and ends with 77.
set -euo pipefail
if [ -z "${TWO_HOSTS_INSIDE:-}" ]; then
  problem=$(unshare --map-root-user --net --uts ip link add left type veth peer name right 2>&1) || {
    echo "two_hosts.sh: cannot make network namespaces here: ${problem:-no reason given}" >&2
    exit 77
  }
  TWO_HOSTS_INSIDE=1 exec unshare --map-root-user --net --uts --kill-child --fork "$0" "$@"
fi

hostname narrow0
unshare --net --uts sleep infinity &
other=$!
folder=$(mktemp -d)
trap 'kill "$other"; rm -r "$folder"' EXIT
until [ "$(readlink "/proc/$other/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
on_other() { nsenter --target "$other" --net --uts -- "$@"; }

ip link add left type veth peer name right netns "$other"
ip link set lo up
ip address add 10.77.0.1/24 dev left
ip link set left up
on_other hostname narrow1
on_other ip link set lo up
on_other ip address add 10.77.0.2/24 dev right
on_other ip link set right up

# mpirun calls it with a host's address and a command line for that host's shell.
cat >"$folder/rsh" <<RSH
#!/bin/sh
[ "\$1" = 10.77.0.2 ] || { echo "rsh: unknown host \$1" >&2; exit 1; }
shift
exec nsenter --target $other --net --uts -- sh -c "\$*"
RSH
chmod +x "$folder/rsh"
TWO_HOSTS_RSH=$folder/rsh "$@"
