//! Whom the servers run as. Postgres refuses root, so root hands everything to `nobody`.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::error::{Error, Result};

const UNPRIVILEGED: &str = "nobody";

/// A user of this machine that root becomes to run a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
}

impl Account {
    /// Whom servers run as: for root `nobody`, for anybody else none other than themselves.
    pub fn for_servers() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let path = Path::new("/etc/passwd");
        let passwd = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::find(&passwd, UNPRIVILEGED).map(Some).ok_or(Error::NoUnprivilegedUser)
    }

    fn find(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            (uid != 0).then(|| Self { name: name.to_owned(), uid, gid })
        })
    }

    /// Makes `command` run as this user, with no other groups.
    pub(super) fn apply(account: Option<&Self>, command: &mut Command) {
        if let Some(account) = account {
            command.uid(account.uid).gid(account.gid);
        }
    }

    /// Whether the user can do what `test` of the shell asks (`-x`, `-w`) to `path`.
    pub(super) fn can(account: Option<&Self>, test: &str, path: &Path) -> bool {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "test \"$0\" \"$1\"", test]).arg(path).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self::apply(account, &mut command);
        command.status().is_ok_and(|status| status.success())
    }

    /// Refuses a path that the user can't use.
    pub(super) fn require(account: Option<&Self>, doing: &'static str, test: &str, path: &Path) -> Result<()> {
        match account {
            Some(user) if !Self::can(account, test, path) => {
                Err(Error::Closed { user: user.name.clone(), doing, path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a program that isn't there or that the user can't run.
    pub(super) fn require_program(account: Option<&Self>, program: &Path, todo: &'static str) -> Result<()> {
        if !program.is_file() {
            return Err(Error::NoProgram { path: program.to_owned(), todo });
        }
        Self::require(account, "run", "-x", program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name_and_is_never_root() {
        let passwd = "root:x:0:0::/:/bin/sh\nnobody2:x:7:7::/:\nnobody:x:65534:65533::/:\nfake:x:0:1::/:";
        let found = Account::find(passwd, "nobody").unwrap();
        assert_eq!((found.uid, found.gid), (65534, 65533));
        assert!(Account::find(passwd, "fake").is_none());
        assert!(Account::find(passwd, "absent").is_none());
    }
}
