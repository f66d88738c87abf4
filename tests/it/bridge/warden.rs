//! Ends the processes that tests started, however this program ends: the kernel closes its end of a pipe, a `kill -9`
//! included, and a small shell in a process group of its own ends them then.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};

/// Reads `watch PID` and `leave PID`, and in the end kills what is watched. One that is stopped heeds nothing less.
const SCRIPT: &str = r#"
watched=" "
while read -r word pid; do
    rest="${watched%% $pid *} ${watched#* $pid }"
    case $word in
        watch) watched="$watched$pid " ;;
        leave) case $watched in *" $pid "*) watched=$rest ;; esac ;;
    esac
done
for pid in $watched; do kill -s KILL "$pid" 2>/dev/null; done
"#;

static WARDEN: LazyLock<Warden> = LazyLock::new(Warden::new);

/// From now on `child` does not outlive this program.
pub fn watch(child: &Child) {
    WARDEN.tell("watch", child.id());
}

/// It has ended, and its number may be another's.
pub fn leave(child: &Child) {
    WARDEN.tell("leave", child.id());
}

/// The shell; it outlives this program by a moment, so nobody waits for it.
struct Warden(Mutex<Child>);

impl Warden {
    fn new() -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SCRIPT, "warden"]).process_group(0).stdin(Stdio::piped());
        Self(Mutex::new(shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()))
    }

    fn tell(&self, word: &str, pid: u32) {
        let mut shell = self.0.lock().unwrap();
        // Without a warden the tests are as good.
        let _ = shell.stdin.as_mut().map(|told| told.write_all(format!("{word} {pid}\n").as_bytes()));
    }
}

#[test]
fn what_is_watched_ends_with_the_program_that_started_it() {
    let sleep = || Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    let (mut watched, mut left, mut other) = (sleep(), sleep(), sleep());
    let warden = Warden::new();
    for child in [&watched, &left, &other] {
        warden.tell("watch", child.id());
    }
    warden.tell("leave", left.id());
    // All that is left of a program that was killed.
    drop(warden);
    assert!(!watched.wait().unwrap().success() && !other.wait().unwrap().success());
    assert!(left.try_wait().unwrap().is_none(), "nobody watched it any more");
    left.kill().unwrap();
    left.wait().unwrap();
}
