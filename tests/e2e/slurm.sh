#!/bin/bash
# configs/slurm/train.sbatch without Slurm: a stand-in for scontrol, mpirun (or nothing) in srun's place. The signal before the
# time limit saves and requeues; the next start goes on; a failure requeues a few times only.
cd "$(dirname "$0")/../.." || exit 2
. tests/support/e2e.sh
make_inputs 40
mkdir "$work/bin"
cat >"$work/bin/scontrol" <<END
#!/bin/sh
case \$1 in show) echo localhost ;; requeue) echo "\$2" >>"$work/queue" ;; esac
END
chmod +x "$work/bin/scontrol"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export NIBBLE=$nibble SLURM_JOB_ID=77 SLURM_JOB_NODELIST=localhost NIBBLE_SRUN=env
if [[ -e $(dirname "$nibble")/libnibble_mpi.so ]] && mpirun --version 2>/dev/null | grep -q "Open MPI"; then
    NIBBLE_SRUN="mpirun --oversubscribe --bind-to none -n 2"
fi
echo "# in srun's place: $NIBBLE_SRUN"
job() { PATH=$work/bin:$PATH exec configs/slurm/train.sbatch "$work/config.json" --threads 1 --set train.steps=24 --set "output.path=$work/$1" "${@:2}"; }
whole() { (job whole >"$work/out" 2>"$work/err" </dev/null) && out_has "done" && [[ ! -e $work/queue ]]; }
check "a job that is not disturbed" whole
told() {
    job told >"$work/out" 2>"$work/err" </dev/null &
    local pid=$!
    wait_for 120 grep -qs '"kind":"step","step":3,' "$work/told/metrics.jsonl" || return 1
    kill -USR1 $pid
    wait $pid
    (($? == 130)) && err_has "go on with --resume" && out_has "back into the queue" && [[ $(cat "$work/queue") == 77 ]]
} 2>/dev/null
check "the signal before the time limit: saved, requeued" told
again() { (job told >"$work/out" 2>"$work/err" </dev/null) && err_has "resumed at step" && same_adapter whole told && [[ $(wc -l <"$work/queue") == 1 ]]; }
check "the next start goes on: the bytes of an undisturbed job" again
fails() { (SLURM_RESTART_COUNT=$1 job fails --set data.path=nowhere.jsonl >"$work/out" 2>"$work/err" </dev/null); (($? == 1)); }
failed() { fails 0 && [[ $(wc -l <"$work/queue") == 2 ]] && fails 5 && [[ $(wc -l <"$work/queue") == 2 ]]; }
check "a failure is tried again, and not for ever" failed
finish
