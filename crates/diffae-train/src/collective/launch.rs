//! The place of a process in its group, as Slurm, torchrun or MPI give it.

use crate::error::{Error, Result};

/// Port of process 0 where a launcher names none.
pub const DEFAULT_PORT: u16 = 29_500;
/// Variables in which launchers tell the number of a process on its machine.
const LOCAL_RANKS: [&str; 4] = ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];
/// First of the ports that Slurm jobs take by their number, and how many there are.
const FIRST_SLURM_PORT: u64 = 20_000;
const NUM_SLURM_PORTS: u64 = 9_000;
/// First of the ports that jobs of Open MPI take, and how many there are.
const FIRST_JOB_PORT: u16 = 20_000;
const NUM_JOB_PORTS: u16 = 9_000;
/// Distance of the ports of two steps of a job, so that jobs of neighboring numbers rarely meet.
const SLURM_STEP_PORTS: u64 = 1_009;

/// A process of a group, and where to meet the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Number of the process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Host and port where process 0 waits for the others.
    pub address: String,
}

/// A program that starts the processes of a group, and tells each its place by environment variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// `torchrun`, and what follows its convention.
    Torchrun,
    /// `srun` of Slurm.
    Slurm,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// `mpiexec` of MPICH, Intel MPI and others with PMI.
    Mpich,
}

impl Launcher {
    /// All launchers, in the order in which they are looked for: an `mpirun` within a job of Slurm is the nearer one.
    pub const ALL: [Self; 4] = [Self::Torchrun, Self::OpenMpi, Self::Mpich, Self::Slurm];

    /// Returns the launcher that has started this process, if there is one. `variable` reads the environment.
    pub fn of(variable: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let values = |launcher: Self| launcher.variables().map(variable);
        let found = Self::ALL.into_iter().find(|launcher| values(*launcher).iter().all(Option::is_some))?;
        // A Slurm with PMI sets the variables of MPICH itself.
        let is_slurm = found == Self::Mpich && values(Self::Mpich) == values(Self::Slurm);
        Some(if is_slurm { Self::Slurm } else { found })
    }

    /// Returns whether MPI connects the processes that it starts.
    #[must_use]
    pub fn has_mpi(self) -> bool {
        matches!(self, Self::OpenMpi | Self::Mpich)
    }

    /// Returns the number of this process on its machine, as the launcher tells it: that of its card, where each process has
    /// one. `variable` reads the environment; without a launcher there is none.
    pub fn local_rank(variable: &dyn Fn(&str) -> Option<String>) -> Option<usize> {
        Self::of(variable)?;
        LOCAL_RANKS.iter().find_map(|name| variable(name)?.parse().ok())
    }

    /// Variables of rank and size.
    fn variables(self) -> [&'static str; 2] {
        match self {
            Self::Torchrun => ["RANK", "WORLD_SIZE"],
            // Not SLURM_NTASKS: a batch script has that, too, and is a single process.
            Self::Slurm => ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"],
            Self::OpenMpi => ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
            Self::Mpich => ["PMI_RANK", "PMI_SIZE"],
        }
    }

    /// Name, for messages.
    fn name(self) -> &'static str {
        match self {
            Self::Torchrun => "torchrun",
            Self::Slurm => "srun",
            Self::OpenMpi => "mpirun",
            Self::Mpich => "mpiexec",
        }
    }

    /// Returns where process 0 waits, if the launcher says so.
    fn address(self, variable: &dyn Fn(&str) -> Option<String>, size: usize) -> Option<String> {
        let number = |name| variable(name).and_then(|value| value.parse::<u64>().ok());
        let all_here = |name| number(name) == Some(size as u64);
        match self {
            Self::Torchrun => {
                let port = variable("MASTER_PORT").and_then(|port| port.parse::<u16>().ok()).unwrap_or(DEFAULT_PORT);
                // There the agent of torchrun listens itself.
                let is_taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
                let port = if is_taken { port.checked_add(1).unwrap_or(DEFAULT_PORT) } else { port };
                variable("MASTER_ADDR").map(|host| format!("{host}:{port}"))
            }
            Self::Slurm => {
                // Steps of a job may run at the same time.
                let number = |name| number(name).unwrap_or(0);
                let step = number("SLURM_STEP_ID").wrapping_mul(SLURM_STEP_PORTS);
                let port = FIRST_SLURM_PORT + number("SLURM_JOB_ID").wrapping_add(step) % NUM_SLURM_PORTS;
                // Nodes of a step are listed in the order of their processes.
                let host = first_host(&variable("SLURM_STEP_NODELIST").or_else(|| variable("SLURM_NODELIST"))?)?;
                Some(format!("{host}:{port}"))
            }
            // Jobs on one machine have ports of their own, where they have names.
            Self::OpenMpi => {
                let port = variable("PMIX_NAMESPACE").map_or(DEFAULT_PORT, |job| port_of_job(&job));
                all_here("OMPI_COMM_WORLD_LOCAL_SIZE").then(|| format!("127.0.0.1:{port}"))
            }
            Self::Mpich => {
                (all_here("MPI_LOCALNRANKS") || all_here("PMI_LOCAL_SIZE")).then(|| format!("127.0.0.1:{DEFAULT_PORT}"))
            }
        }
    }
}

/// Returns a port that follows from the name of a job.
fn port_of_job(name: &str) -> u16 {
    let [first, second, ..] = *blake3::hash(name.as_bytes()).as_bytes();
    FIRST_JOB_PORT + u16::from_le_bytes([first, second]) % NUM_JOB_PORTS
}

impl Place {
    /// Returns the place that a launcher gives this process, if there is one, and which launcher that is.
    ///
    /// `variable` reads the environment; `address` goes before what the launcher says. A group of one is none.
    ///
    /// # Errors
    /// [`Error::Group`] if the variables contradict each other, or there is no address.
    pub fn of_launcher(
        variable: &dyn Fn(&str) -> Option<String>,
        address: Option<&str>,
    ) -> Result<Option<(Launcher, Self)>> {
        let Some(launcher) = Launcher::of(variable) else { return Ok(None) };
        let [rank, size] = launcher.variables();
        let [rank_text, size_text] = [rank, size].map(|name| variable(name).unwrap_or_default());
        let (Ok(number), Ok(count)) = (rank_text.parse::<usize>(), size_text.parse::<usize>()) else {
            return Err(problem(format!("{rank} is {rank_text:?} and {size} is {size_text:?}, expected two numbers")));
        };
        if count < 2 {
            return Ok(None);
        }
        let given = address.map(str::to_owned).or_else(|| launcher.address(variable, count));
        let address = given.ok_or_else(|| {
            let name = launcher.name();
            problem(format!("{name} does not say where process 0 is; name its host by --master HOST:PORT"))
        })?;
        Ok(Some((launcher, Self::new(number, count, &address)?)))
    }

    /// Makes a place; without a port, the address gets [`DEFAULT_PORT`].
    ///
    /// # Errors
    /// [`Error::Group`] if the rank is not below the size, or there is no host.
    pub fn new(rank: usize, size: usize, address: &str) -> Result<Self> {
        if rank >= size {
            return Err(problem(format!("there is no process {rank} of {size}: they are numbered from 0")));
        }
        let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !port.is_empty()
                && port.bytes().all(|digit| digit.is_ascii_digit())
                && !host.ends_with(':')
        });
        let address = if has_port { address.to_owned() } else { format!("{address}:{DEFAULT_PORT}") };
        if address.starts_with(':') {
            return Err(problem(format!("{address:?} is not of the form HOST:PORT")));
        }
        Ok(Self { rank, size, address })
    }
}

/// Returns the first host of a list in Slurm's form, such as `node[07-09,12],login1`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (prefix, rest) = list.split_at(end);
    let host = match rest.strip_prefix('[') {
        Some(numbers) => {
            let number: String = numbers.chars().take_while(char::is_ascii_digit).collect();
            let suffix = numbers.split_once(']').map_or("", |(_, after)| after);
            let suffix = suffix.split(',').next().unwrap_or_default();
            format!("{prefix}{number}{suffix}")
        }
        None => prefix.to_owned(),
    };
    (!host.is_empty()).then_some(host)
}

fn problem(problem: String) -> Error {
    Error::Group { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)], address: Option<&str>) -> Result<Option<(Launcher, Place)>> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Place::of_launcher(&variable, address)
    }

    #[track_caller]
    fn check(variables: &[(&str, &str)], launcher: Launcher, (rank, size, address): (usize, usize, &str)) {
        let expected = Place { rank, size, address: address.to_owned() };
        assert_eq!(place(variables, None).unwrap(), Some((launcher, expected)));
    }

    #[test]
    fn every_launcher_gives_a_place() {
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "head"), ("MASTER_PORT", "1234")];
        check(&torchrun, Launcher::Torchrun, (3, 8, "head:1234"));
        let agent = [&torchrun[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        check(&agent, Launcher::Torchrun, (3, 8, "head:1235"));
        let slurm = [
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_STEP_NODELIST", "gpu[07-08,12]"),
            ("SLURM_JOB_ID", "9001"),
        ];
        check(&slurm, Launcher::Slurm, (1, 2, "gpu07:20001"));
        let second_step = [&slurm[..], &[("SLURM_STEP_ID", "1")]].concat();
        check(&second_step, Launcher::Slurm, (1, 2, "gpu07:21010"));
        // A Slurm with PMI.
        let pmi = [&slurm[..], &[("PMI_RANK", "1"), ("PMI_SIZE", "2")]].concat();
        check(&pmi, Launcher::Slurm, (1, 2, "gpu07:20001"));
        let mpi = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
        check(&mpi, Launcher::OpenMpi, (0, 2, "127.0.0.1:29500"));
        let named = |name| {
            let found = place(&[&mpi[..], &[("PMIX_NAMESPACE", name)]].concat(), None).unwrap().unwrap();
            let port: u16 = found.1.address.strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
            assert!((FIRST_JOB_PORT..FIRST_JOB_PORT + NUM_JOB_PORTS).contains(&port));
            port
        };
        assert_ne!(named("477298689"), named("477298690"));
        // mpirun within a job of Slurm.
        check(&[&slurm[..], &mpi].concat(), Launcher::OpenMpi, (0, 2, "127.0.0.1:29500"));
        let mpich = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALNRANKS", "2")];
        check(&mpich, Launcher::Mpich, (1, 2, "127.0.0.1:29500"));
    }

    #[test]
    fn the_number_on_a_machine_is_that_of_the_launcher() {
        let local = |variables: &'static [(&str, &str)]| {
            Launcher::local_rank(&move |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(local(&[("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")]), Some(1));
        assert_eq!(local(&[("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_LOCALID", "3")]), Some(3));
        // A batch script of Slurm is no process of a group.
        assert_eq!(local(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "0")]), None);
    }

    #[test]
    fn a_single_process_has_no_place() {
        assert_eq!(place(&[], None).unwrap(), None);
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")], None).unwrap(), None);
        // A batch script of a job with several tasks.
        assert_eq!(place(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")], None).unwrap(), None);
    }

    #[test]
    fn an_address_may_be_needed_and_goes_first() {
        let two = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
        let error = place(&two, None).unwrap_err().to_string();
        assert!(error.contains("--master HOST:PORT"), "{error}");
        assert_eq!(place(&two, Some("head")).unwrap().unwrap().1.address, "head:29500");
        let wrong = place(&[("RANK", "x"), ("WORLD_SIZE", "2")], None).unwrap_err().to_string();
        assert!(wrong.contains("RANK is \"x\""), "{wrong}");
        assert!(Place::new(2, 2, "head").is_err() && Place::new(0, 2, ":5").is_err());
        assert_eq!(Place::new(0, 2, "[::1]:5").unwrap().address, "[::1]:5");
        assert_eq!(Place::new(0, 2, "[::1]").unwrap().address, "[::1]:29500");
    }

    #[test]
    fn hosts_are_listed_as_slurm_does() {
        for (list, first) in [
            ("node1", Some("node1")),
            ("node1,node2", Some("node1")),
            ("node[3-5]", Some("node3")),
            ("node[009,011-012]", Some("node009")),
            ("rack2-[1-4]-ib,login", Some("rack2-1-ib")),
            ("", None),
        ] {
            assert_eq!(first_host(list).as_deref(), first, "{list}");
        }
    }
}
