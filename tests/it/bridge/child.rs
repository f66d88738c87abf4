//! `crossover serve` in a process of its own, which can be paused, killed and asked to end.

use std::fs::File;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child as Process, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::world::{Node, World};
use super::{PATIENCE, until, warden};

pub struct Child {
    process: Process,
    pub node: Node,
    pub address: SocketAddr,
    log: PathBuf,
}

impl Child {
    /// Serves `roles` on the world's servers; `set` adds or overrides variables.
    pub async fn serve(world: &World, roles: &str, set: &[(&str, &str)]) -> Self {
        Self::launch(world, Command::new(env!("CARGO_BIN_EXE_crossover")), roles, set).await
    }

    /// The same, where no file may become larger than so many kilobytes: to the process that is a full disk.
    pub async fn serve_within(world: &World, kilobytes: u32, roles: &str, set: &[(&str, &str)]) -> Self {
        let mut shell = Command::new("bash");
        let limit = format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$0\" \"$@\"");
        shell.args(["-c", &limit, env!("CARGO_BIN_EXE_crossover")]);
        Self::launch(world, shell, roles, set).await
    }

    async fn launch(world: &World, command: Command, roles: &str, set: &[(&str, &str)]) -> Self {
        let mut variables = world.variables();
        variables.extend(set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let served = Self::start(command, roles, world.fresh("child"), &variables).await;
        served.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Serves `roles` with a program of ours, on the disk `state`; what it says where it does not come to serve.
    pub async fn run(
        program: &str,
        roles: &str,
        state: PathBuf,
        variables: &[(String, String)],
    ) -> Result<Self, String> {
        Self::start(Command::new(program), roles, state, variables).await
    }

    async fn start(
        mut command: Command,
        roles: &str,
        state: PathBuf,
        variables: &[(String, String)],
    ) -> Result<Self, String> {
        std::fs::create_dir_all(&state).unwrap();
        let log = state.join("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        command.args(["serve", "--json", "--roles", roles]).current_dir(&state);
        command.env("CROSSOVER_STATE_DIR", &state).envs(variables.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut process = command.spawn().unwrap();
        warden::watch(&process);
        let out = BufReader::new(process.stdout.take().unwrap());
        // Whatever follows, the process doesn't outlive this.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut child = Self { process, node: Node::at(nowhere), address: nowhere, log };
        let read =
            tokio::task::spawn_blocking(|| serde_json::Deserializer::from_reader(out).into_iter::<Value>().next());
        let said = tokio::time::timeout(PATIENCE, read).await.map_err(|_| "it doesn't say where it listens")?.unwrap();
        let said = said.ok_or_else(|| format!("it ended: {}", child.log()))?.map_err(|error| error.to_string())?;
        let address = said["listening"].as_str().ok_or_else(|| format!("{said}: {}", child.log()))?;
        child.address = address.parse().unwrap();
        child.node = Node::at(child.address);
        Ok(child)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }

    pub fn pause(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    pub fn go_on(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    pub async fn ended(&mut self) -> ExitStatus {
        until("the child has ended", async || self.process.try_wait().unwrap()).await
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        warden::leave(&self.process);
    }
}
