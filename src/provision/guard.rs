//! Ties a server's life to ours. The kernel closes our end of a pipe however we end, `kill -9` included, and a
//! small shell script (`guardian.sh`) in a process group of its own ends the server then.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::account::Account;
use super::error::{Error, Result};
use super::files;

const GUARDIAN: &str = include_str!("guardian.sh");
/// A server gets so long to heed its stop signal.
const PATIENCE: Duration = Duration::from_secs(10);
/// A shell that takes longer to start anything is stuck.
const SPAWN: Duration = Duration::from_secs(20);
/// Whoever uses the data gets so long to end: the guardian of a killed process needs up to its own patience.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// A program to run under a guardian.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    /// For people.
    pub name: &'static str,
    /// Absolute, for the working folder is `home`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// What it finds in its environment besides what every server does.
    pub variables: Vec<(&'static str, String)>,
    /// Where it lives: data, log and lock.
    pub home: Home,
    /// Ends it in good order.
    pub stop_signal: &'static str,
}

/// A server's own folder.
#[derive(Debug, Clone)]
pub(super) struct Home {
    /// Absolute.
    pub path: PathBuf,
    /// Removed with the server.
    pub throwaway: bool,
    /// Whom it belongs to, if not us.
    pub account: Option<Account>,
}

impl Home {
    /// The named folder in `data_dir`, or a fresh one that goes with the server.
    pub fn make(data_dir: Option<&PathBuf>, name: &str, account: Option<Account>) -> Result<Self> {
        let path = data_dir.map_or_else(|| files::fresh_path(name), |dir| dir.join(name));
        let path = std::path::absolute(&path).map_err(Error::io("find", &path))?;
        files::own_dir(&path, account.as_ref())?;
        Ok(Self { path, throwaway: data_dir.is_none(), account })
    }

    /// Removes a throwaway folder that no server lives in after all.
    pub fn clear_unless<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            // Why there is no server matters more than this.
            let _ = self.clear();
        }
        result
    }

    /// Removes a throwaway folder, should its guardian not have come to it.
    pub fn clear(&self) -> Result<()> {
        if self.throwaway { files::remove_dir(&self.path) } else { Ok(()) }
    }

    fn log(&self) -> PathBuf {
        self.path.join("server.log")
    }

    /// The end of the log, introduced. A throwaway one is gone when somebody reads this, so it isn't named.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let name = if self.throwaway { "Its log".to_owned() } else { format!("Its log {}", log.display()) };
        format!("{name} ends with:\n{}", files::tail(&log))
    }
}

/// How far a guarded program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Life {
    /// It runs.
    Running,
    /// It ended with this status of the shell (above 128: by a signal).
    Ended(String),
    /// Its guardian has left too.
    Gone,
}

/// A running program with its guardian. Dropping it ends both, in the background.
#[derive(Debug)]
pub(super) struct Guard {
    /// The program's, not the guardian's.
    pub pid: u32,
    stdin: ChildStdin,
    life: watch::Receiver<Life>,
}

impl Guard {
    /// Starts the program once nobody else uses its data.
    pub async fn spawn(launch: &Launch) -> Result<Self> {
        let home = &launch.home;
        let lock = files::lock(&home.path.join("lock"), LOCK_PATIENCE).await?;
        let lock = lock.ok_or_else(|| Error::InUse { dir: home.path.clone(), waited: LOCK_PATIENCE })?;
        // The log of the start before stays beside this one's; the first start has none.
        let _ = std::fs::rename(home.log(), home.path.join("server.log.1"));
        let mut child = command(launch, lock).spawn().map_err(Error::io("run", "/bin/sh"))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are piped")
        };
        let (tell_pid, pid) = oneshot::channel();
        let (tell_life, life) = watch::channel(Life::Running);
        std::thread::spawn(move || listen(child, stdout, tell_pid, &tell_life));
        match timeout(SPAWN, pid).await {
            Ok(Ok(pid)) => Ok(Self { pid, stdin, life }),
            _ => Err(Error::Ended { server: launch.name, status: "none".into(), log: home.log_tail() }),
        }
    }

    /// The status it ended with, if it has.
    pub fn status(&self) -> Option<String> {
        match &*self.life.borrow() {
            Life::Running => None,
            Life::Ended(status) => Some(status.clone()),
            Life::Gone => Some("unknown".to_owned()),
        }
    }

    /// Waits until the program has ended.
    pub async fn ended(&self) -> String {
        // An error means that the listener has left, which it does last of all.
        let _ = self.life.clone().wait_for(|life| *life != Life::Running).await;
        self.status().unwrap_or_else(|| "unknown".to_owned())
    }

    /// Kills the program, not its guardian.
    pub fn kill(&self) {
        if self.status().is_none() {
            kill(self.pid);
        }
    }

    /// Ends the program in good order, and then its guardian. `keep` leaves a throwaway folder where it is.
    pub async fn end(mut self, name: &'static str, keep: bool) -> Result<()> {
        let waited = PATIENCE + Duration::from_secs(5);
        let won_t = |pid| Error::WontEnd { server: name, pid, waited };
        // Can't be written to a guardian that has left, and then needn't.
        let _ = self.stdin.write_all(b"stop\n");
        timeout(waited, self.ended()).await.map_err(|_| won_t(self.pid))?;
        if keep {
            let _ = self.stdin.write_all(b"keep\n");
        }
        let Self { pid, stdin, mut life } = self;
        drop(stdin);
        let gone = timeout(waited, life.wait_for(|life| *life == Life::Gone)).await;
        gone.map(drop).map_err(|_| won_t(pid))
    }
}

fn command(launch: &Launch, lock: File) -> Command {
    let home = &launch.home;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", GUARDIAN, "crossover-guardian", launch.stop_signal]).arg(PATIENCE.as_secs().to_string());
    command.arg(home.log()).arg(if home.throwaway { home.path.as_os_str() } else { "".as_ref() });
    command.arg(&launch.program).args(&launch.args);
    // Nothing of our environment reaches a server, so it behaves alike everywhere and learns no secret.
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &home.path).env("TZ", "UTC").env("LC_ALL", "C");
    command.envs(launch.variables.iter().map(|(name, value)| (name, value)));
    command.current_dir(&home.path).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(lock);
    Account::apply(home.account.as_ref(), &mut command);
    command
}

/// Hears the guardian out: first the program's process id, then its status; last its own end.
fn listen(mut child: Child, stdout: ChildStdout, pid: oneshot::Sender<u32>, life: &watch::Sender<Life>) {
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let Some(number) = lines.next().and_then(|line| line.parse().ok()) else {
        let _ = child.wait();
        return;
    };
    // Nobody waits for it any more: then the pipe is closed too, and the guardian ends both.
    let _ = pid.send(number);
    let status = lines.next().unwrap_or_else(|| {
        // Somebody killed the guardian. A server without one would outlive us.
        kill(number);
        "its guardian was killed".to_owned()
    });
    life.send_replace(Life::Ended(status));
    let _ = child.wait();
    life.send_replace(Life::Gone);
}

fn kill(pid: u32) {
    // An error means that it has ended meanwhile.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
