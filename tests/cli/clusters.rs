//! Real launchers on this machine, where they are installed: `mpirun`, and a Slurm of one node that lasts as long as its test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::groups::{RUN, alone, free_port, newest, pictures};
use crate::shards::contents;
use crate::support::{Workspace, checkpoint};

/// Programs of Slurm, and of its authentication.
const SLURM: [&str; 5] = ["munged", "slurmctld", "slurmd", "srun", "sbatch"];
/// Arguments that a run of [`RUN`] goes on with.
const RUN_AGAIN: [&str; 4] = ["--stage", "autoencoder", "--threads", "1"];
/// Time that the daemons may take to start.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Finds a program, also where those of the system administrator are.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Runs a launcher in a workspace; what it says is shown if it fails.
#[track_caller]
fn succeeds(workspace: &Workspace, command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.current_dir(workspace.path("")).output().unwrap();
    let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(status.success(), "{command:?}: {stdout}{stderr}");
    stdout
}

/// Arguments of the program in a launcher: training into a folder.
fn training(out: &str) -> Vec<&str> {
    [&[env!("CARGO_BIN_EXE_diffae")], &RUN[..], &["--out", out]].concat()
}

/// Processes of MPICH on one machine meet at one port, whatever job they are of.
static PORT: Mutex<()> = Mutex::new(());

/// The `mpirun` of this machine, for so many processes; `None` where there is none, or it starts nothing.
///
/// In a build with the feature `mpi` the processes are connected by MPI, else by TCP.
fn mpirun(count: usize) -> Option<Command> {
    let mpirun = find("mpirun")?;
    let command = || {
        let mut command = Command::new(&mpirun);
        // Of Open MPI; they mean nothing to others.
        let variables =
            ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"];
        command.envs(variables.map(|name| (name, "1"))).args(["-n", &count.to_string()]);
        command
    };
    if !command().arg("true").output().unwrap().status.success() {
        eprintln!("skipped: mpirun starts nothing here");
        return None;
    }
    Some(command())
}

#[test]
fn mpirun_starts_processes_that_train_as_one() {
    let workspace = Workspace::new();
    let Some(mut two) = mpirun(2) else { return };
    pictures(&workspace);
    let expected = alone(&workspace);
    let mut three = mpirun(3).unwrap();
    let _port = PORT.lock();
    for (command, out) in [(&mut two, "two"), (&mut three, "three")] {
        let told = succeeds(&workspace, command.args(training(out)));
        assert_eq!(told.matches("the model is in").count(), 1);
        assert!(fs::read(workspace.path(out).join("model.safetensors")).unwrap() == expected, "{out}");
    }
}

/// The processes of a launcher that train into a folder.
#[cfg(target_os = "linux")]
fn ranks(launcher: &Child, out: &str) -> Vec<u32> {
    let is_one = |&pid: &u32| {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let words = read("cmdline");
        let words: Vec<&[u8]> = words.split(|&byte| byte == 0).collect();
        let program = env!("CARGO_BIN_EXE_diffae").as_bytes();
        pid != launcher.id() && words.first() == Some(&program) && words.contains(&out.as_bytes())
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn mpirun_ends_all_when_one_is_killed_and_the_run_goes_on() {
    let workspace = Workspace::new();
    let Some(mut three) = mpirun(3) else { return };
    pictures(&workspace);
    let expected = alone(&workspace);
    // A name that no other test has, since the processes are found by it.
    let out = format!("killed-{}", std::process::id());
    let _port = PORT.lock();
    let command = three.args(training(&out)).current_dir(workspace.path(""));
    let mut launcher = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while newest(&workspace, &out) < 5 {
        assert!(start.elapsed() < TIMEOUT && launcher.try_wait().unwrap().is_none(), "nothing is trained");
        std::thread::sleep(Duration::from_millis(5));
    }
    let victims = ranks(&launcher, &out);
    assert_eq!(victims.len(), 3);
    assert!(Command::new("kill").args(["-KILL", &victims[1].to_string()]).status().unwrap().success());
    let killed = Instant::now();
    assert!(!launcher.wait().unwrap().success());
    while !ranks(&launcher, &out).is_empty() {
        assert!(killed.elapsed() < Duration::from_secs(30), "some go on");
        std::thread::sleep(Duration::from_millis(50));
    }
    workspace.run(&[&["train", "--resume", "--out", &out], &RUN_AGAIN[..]].concat()).succeeds();
    assert!(fs::read(workspace.path(&out).join("model.safetensors")).unwrap() == expected);
}

/// A Slurm of one node with two cores.
struct Slurm {
    config: PathBuf,
    daemons: Vec<Child>,
}

impl Slurm {
    /// Starts the daemons; `None` where a program of theirs is missing, this user may not run them, or they do not work.
    fn start(folder: &Path) -> Option<Self> {
        let [munged, slurmctld, slurmd, srun, _] = SLURM.map(find);
        let (munged, slurmctld, slurmd) = (munged?, slurmctld?, slurmd?);
        let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
        if !is_root {
            return None;
        }
        for name in ["state", "spool", "munge"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let text = |name: &str| folder.join(name).display().to_string();
        fs::write(folder.join("munge/key"), [7; 1024]).unwrap();
        for (mode, name) in [("700", "munge"), ("400", "munge/key")] {
            assert!(Command::new("chmod").args([mode, &text(name)]).status().unwrap().success());
        }
        let host = Command::new("hostname").arg("-s").output().unwrap().stdout;
        let host = String::from_utf8(host).unwrap().trim().to_owned();
        let [controller, daemon] = [0; 2].map(|_| free_port());
        let config = folder.join("slurm.conf");
        let settings = format!(
            "ClusterName=scratch\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmctldPort={controller}\n\
             SlurmdPort={daemon}\nAuthType=auth/munge\nAuthInfo=socket={socket}\nStateSaveLocation={state}\n\
             SlurmdSpoolDir={spool}\nSlurmctldPidFile={base}/slurmctld.pid\nSlurmdPidFile={base}/slurmd.pid\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\n\
             SelectTypeParameters=CR_CPU\nMpiDefault=none\nReturnToService=2\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\n\
             PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP\n",
            socket = text("munge/socket"),
            state = text("state"),
            spool = text("spool"),
            base = folder.display(),
        );
        fs::write(&config, settings).unwrap();
        let munge = ["key-file=key", "socket=socket", "pid-file=pid", "log-file=log", "seed-file=seed"];
        let munge = munge.map(|option| {
            let (name, file) = option.split_once('=').unwrap();
            format!("--{name}={}", text(&format!("munge/{file}")))
        });
        let mut slurm = Self { config, daemons: vec![] };
        slurm.daemon(Command::new(munged).args(["--force", "--foreground"]).args(munge));
        if !slurm.comes_to(|_| folder.join("munge/socket").exists()) {
            return None;
        }
        slurm.daemon(Command::new(slurmctld).arg("-D"));
        slurm.daemon(Command::new(slurmd).arg("-D"));
        let srun = srun?;
        let runs = |slurm: &Self| {
            let tried = slurm.command(&srun).args(["--immediate=5", "true"]).output();
            tried.is_ok_and(|output| output.status.success())
        };
        slurm.comes_to(runs).then_some(slurm)
    }

    fn daemon(&mut self, command: &mut Command) {
        let command = command.env("SLURM_CONF", &self.config).stdin(Stdio::null());
        self.daemons.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    /// Waits until something is so; false if a daemon ends before, as where it may not do its work.
    fn comes_to(&mut self, what: impl Fn(&Self) -> bool) -> bool {
        let start = Instant::now();
        while !what(self) {
            let has_ended = |daemon: &mut Child| daemon.try_wait().is_ok_and(|status| status.is_some());
            if start.elapsed() > TIMEOUT || self.daemons.iter_mut().any(has_ended) {
                eprintln!("skipped: Slurm does not start here");
                return false;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        true
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", &self.config);
        command
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[test]
fn slurm_starts_processes_that_train_as_one_and_arrays_of_shards() {
    let workspace = Workspace::new();
    let Some(slurm) = Slurm::start(&workspace.path("slurm")) else { return };
    let [srun, sbatch] = ["srun", "sbatch"].map(|program| find(program).unwrap());
    pictures(&workspace);
    let expected = alone(&workspace);
    let told = succeeds(&workspace, slurm.command(&srun).arg("--ntasks=2").args(training("run")));
    assert_eq!(told.matches("the model is in").count(), 1, "{told}");
    assert!(fs::read(workspace.path("run/model.safetensors")).unwrap() == expected);
    // A job that asks for two tasks runs its script, and what is not started by srun, once.
    let one = training("batch").join(" ");
    succeeds(&workspace, slurm.command(&sbatch).args(["--wait", "--ntasks=2", &format!("--wrap={one}")]));
    assert!(fs::read(workspace.path("batch/model.safetensors")).unwrap() == expected);
    let model = checkpoint("autoenc16_latent");
    let encode = ["encode", "--model", &model, "pictures", "--steps", "2", "--out", "codes.safetensors"];
    workspace.run(&encode).succeeds();
    let script = format!("--wrap={} {} --shard slurm", env!("CARGO_BIN_EXE_diffae"), encode.join(" "));
    succeeds(&workspace, slurm.command(&sbatch).args(["--wait", "--array=1-3", &script]));
    let shards = [1, 2, 3].map(|number| format!("codes-0000{number}-of-00003.safetensors"));
    let shards = shards.each_ref().map(String::as_str);
    workspace.run(&[&["codes", "merge"], &shards[..], &["--out", "merged.safetensors"]].concat()).succeeds();
    assert!(contents(&workspace.path("merged.safetensors")) == contents(&workspace.path("codes.safetensors")));
}
