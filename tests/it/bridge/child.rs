//! `crossover serve` in a process of its own, which can be paused, killed and asked to end.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Child as Process, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::world::{Node, World};
use super::{PATIENCE, until};

pub struct Child {
    process: Process,
    pub node: Node,
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

    async fn launch(world: &World, mut command: Command, roles: &str, set: &[(&str, &str)]) -> Self {
        let state = world.fresh("child");
        std::fs::create_dir_all(&state).unwrap();
        let log = state.join("log");
        command.args(["serve", "--json", "--roles", roles]).current_dir(&state);
        command.envs(world.variables()).env("CROSSOVER_STATE_DIR", &state).envs(set.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut process = command.spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let read =
            tokio::task::spawn_blocking(|| serde_json::Deserializer::from_reader(out).into_iter::<Value>().next());
        let said = tokio::time::timeout(PATIENCE, read).await.expect("it says where it listens").unwrap();
        let shown = || std::fs::read_to_string(&log).unwrap_or_default();
        let said = said.unwrap_or_else(|| panic!("it ended: {}", shown())).unwrap();
        let address = said["listening"].as_str().unwrap_or_else(|| panic!("{said}: {}", shown()));
        let node = Node::at(address.parse().unwrap());
        Self { process, node, log }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
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
    }
}
