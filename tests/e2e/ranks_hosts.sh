#!/bin/bash
# Two hosts, played by two network namespaces joined by a virtual cable: mpirun starts a rank in each and they train over TCP; when
# the cable is cut the run ends within the limit and says why. Needs root and `ip netns`; skipped where that is not allowed.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
id=nibble$$
undo() {
    ip netns pids ${id}a 2>/dev/null | xargs -r kill -9
    ip netns pids ${id}b 2>/dev/null | xargs -r kill -9
    ip netns del ${id}a
    ip netns del ${id}b
    rm -rf "$work"
} 2>/dev/null
trap undo EXIT
cable() {
    ip netns add ${id}a && ip netns add ${id}b &&
        ip link add name eth0 netns ${id}a type veth peer name eth0 netns ${id}b &&
        ip -n ${id}a addr add 10.77.0.1/24 dev eth0 && ip -n ${id}b addr add 10.77.0.2/24 dev eth0 &&
        ip -n ${id}a link set eth0 up && ip -n ${id}b link set eth0 up && ip -n ${id}a link set lo up &&
        ip -n ${id}b link set lo up && ip netns exec ${id}a unshare --uts true
} >"$work/cable" 2>&1
if [[ ! -e $(dirname "$nibble")/libnibble_mpi.so ]] || ! command -v mpirun >/dev/null; then
    skip "two hosts" "libnibble_mpi.so was not built here, or there is no mpirun"
    finish
    exit
elif ! mpirun --version 2>/dev/null | grep -q "Open MPI"; then
    skip "two hosts" "the options below are Open MPI's"
    finish
    exit
elif ! cable; then
    skip "two hosts" "no network namespaces here: $(tail -n 1 "$work/cable")"
    finish
    exit
fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_orte_execute_quiet=1
limit=3
make_inputs 60
# What mpirun takes for ssh: the second host is the other namespace, under another name.
cat >"$work/agent" <<END
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
shift
exec ip netns exec ${id}b unshare --uts sh -c "hostname hostb; \$*"
END
chmod +x "$work/agent"
cat >"$work/start" <<END
hostname hosta
exec mpirun --mca plm_rsh_agent $work/agent --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 \\
    --mca oob_tcp_if_include 10.77.0.0/24 --mca oob_tcp_keepalive_time 1 --mca oob_tcp_keepalive_intvl 1 \\
    --mca oob_tcp_keepalive_probes 2 -n 2 --host hosta:1,10.77.0.2:1 --map-by node \\
    $nibble train $work/config.json --threads 1 --set distributed.timeout_s=$limit "\$@"
END
hosts() { ip netns exec ${id}a unshare --uts sh "$work/start" "$@" >"$work/out" 2>"$work/err" </dev/null; }

trains() {
    hosts --set "output.path=$work/both" --log-all && err_has "rank 1: " && err_has "written: " && [[ -s $work/both/logs/rank-1.log ]] &&
        ip -n ${id}a -s link show eth0 | awk '/RX:/ { getline; print "# bytes over the cable: " $1; exit !($1 > 100000) }'
}
check "two hosts train" trains

cut() {
    local i begin
    hosts --set "output.path=$work/cut" --set train.epochs=2000 --set train.eval_every=0 &
    for ((i = 0; i < 600; i++)); do
        grep -qs '"kind":"step","step":3,' "$work/cut/metrics.jsonl" && break
        sleep 0.05
    done
    ip -n ${id}a link set eth0 down
    begin=$EPOCHREALTIME
    # the ranks, on both hosts; mpirun and its daemon look for each other somewhat longer
    for ((i = 0; i < 400; i++)); do
        pgrep -f "^$nibble train .*output.path=$work/cut" >"$work/left" || break
        sleep 0.05
    done
    awk -v a="$begin" -v b="$EPOCHREALTIME" -v limit=$((limit + 3)) 'BEGIN { printf "# ranks ended after %.1f s\n", b - a; exit !(b - a <= limit) }' || return 1
    begin=$EPOCHREALTIME
    wait
    awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "# mpirun %.1f s later\n", b - a }'
    err_has "rank 1 gave no sign of life for $limit s (distributed.timeout_s) at step" && grep "sign of life" "$work/err" | sed 's/^/# /'
} 2>/dev/null
check "the cable is cut: the run ends within the limit, with a message" cut
finish
