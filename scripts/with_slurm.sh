#!/usr/bin/env bash
# Starts a SLURM cluster of this one machine in a temporary folder, runs a command inside an allocation
# of two tasks, and ends the cluster: for tests of srun. Needs root and the programs of slurm-wlm and munge.
# Usage: scripts/with_slurm.sh COMMAND [ARGUMENTS...]; exits with the command's code, 77 without a cluster.
set -euo pipefail
no_cluster() { echo "with_slurm: no cluster: $*" >&2; exit 77; }
[ $# -gt 0 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || no_cluster "not root"
for program in munged slurmctld slurmd salloc; do
  command -v $program >/dev/null || no_cluster "no $program in PATH; install slurm-wlm and munge"
done

folder=$(mktemp -d /tmp/slurm.XXXXXX)
own_munge=
finish() {
  local daemon pid
  for daemon in slurmd slurmctld; do
    pid=$(cat "$folder/$daemon.pid" 2>/dev/null) && kill "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null && sleep 0.1 || break; done
    kill -KILL "$pid" 2>/dev/null || true
  done
  [ -z "$own_munge" ] || munged --stop >/dev/null 2>&1 || true
  rm -rf "$folder"
}
trap finish EXIT

if ! pgrep -x munged >/dev/null; then  # the daemon that signs what the parts of SLURM say to one another
  install -d -o munge -g munge /run/munge
  su -s /bin/sh munge -c munged || no_cluster "munged does not start"
  own_munge=1
fi

host=$(hostname -s)
cat >"$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((20000 + RANDOM % 5000))
SlurmdPort=$((25000 + RANDOM % 5000))
AuthType=auth/munge
SlurmUser=root
StateSaveLocation=$folder
SlurmdSpoolDir=$folder
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES State=UP
END
export SLURM_CONF=$folder/slurm.conf
slurmctld && slurmd || no_cluster "$(tail -n 3 "$folder"/*.log)"
for _ in $(seq 30); do
  [ "$(sinfo --noheader --format %t 2>/dev/null)" = idle ] && break
  sleep 1
done
[ "$(sinfo --noheader --format %t 2>/dev/null)" = idle ] || no_cluster "$(tail -n 3 "$folder"/*.log)"
salloc --quiet --ntasks 2 "$@"
