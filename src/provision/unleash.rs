//! An Unleash of our own, on a database that somebody else provides.

use std::path::{Path, PathBuf};

use super::account::Account;
use super::error::{Error, Result};
use super::guard::{Home, Launch};
use super::server::{HttpProbe, Server};
use super::{Options, UNLEASH};

/// Whoever reaches the loopback of this machine may know them: this Unleash is for tests and demonstrations.
const ADMIN_TOKEN: &str = "*:*.crossover-admin-of-the-loopback";
const ADMIN_PASSWORD: &str = "crossover-of-the-loopback";
const BACKEND_TOKEN: &str = "*:development.crossover-backend-of-the-loopback";

/// A running Unleash.
#[derive(Debug)]
pub struct Unleash {
    /// `http://127.0.0.1:PORT`; the APIs are under `/api`.
    pub url: String,
    /// May do everything, but for what Unleash wants a person for, like an import.
    pub admin_token: String,
    /// Of the user `admin`, for the pages and for `/auth/simple/login`.
    pub admin_password: String,
    /// May read the flags of all projects in [`Unleash::environment`], and report what was counted.
    pub backend_token: String,
    /// One of the two environments that a fresh Unleash has (the other is `production`).
    pub environment: String,
    /// The project that a fresh Unleash has.
    pub project: String,
    /// Its process. What it knows is in the database, so a restart forgets nothing.
    pub server: Server,
}

/// Starts an Unleash on the Postgres database at `database`, which is empty or was an Unleash's before. The tokens are
/// made with an empty one.
pub async fn unleash(options: &Options, database: &str) -> Result<Unleash> {
    let node = UNLEASH.node().await?;
    let main = UNLEASH.ensure(&options.cache_dir, &options.progress).await?;
    let main = std::path::absolute(&main).map_err(Error::io("find", &main))?;
    let account = Account::for_servers()?;
    Account::require_program(account.as_ref(), &node, "install node where all users can run it")?;
    Account::require(account.as_ref(), "read", "-r", &main)?;
    let home = Home::make(options.data_dir.as_ref(), "unleash", account)?;
    let _step = options.progress.step("starting Unleash");
    let plan = |[port]: [u16; 1]| {
        Ok((launch(&node, &main, &home, database, port), Box::new(HttpProbe::new(port, "/health")) as _))
    };
    let (server, [port]) = home.clear_unless(Server::start(plan).await)?;
    Ok(Unleash {
        url: format!("http://127.0.0.1:{port}"),
        admin_token: ADMIN_TOKEN.to_owned(),
        admin_password: ADMIN_PASSWORD.to_owned(),
        backend_token: BACKEND_TOKEN.to_owned(),
        environment: "development".to_owned(),
        project: "default".to_owned(),
        server,
    })
}

fn launch(node: &Path, main: &Path, home: &Home, database: &str, port: u16) -> Launch {
    let variables = [
        ("DATABASE_URL", database.to_owned()),
        ("DATABASE_SSL", "false".to_owned()),
        ("HTTP_HOST", "127.0.0.1".to_owned()),
        ("HTTP_PORT", port.to_string()),
        ("UNLEASH_URL", format!("http://127.0.0.1:{port}")),
        // Nobody outside is asked for newer versions or told that this one runs.
        ("CHECK_VERSION", "false".to_owned()),
        ("SEND_TELEMETRY", "false".to_owned()),
        ("INIT_ADMIN_API_TOKENS", ADMIN_TOKEN.to_owned()),
        ("INIT_BACKEND_API_TOKENS", BACKEND_TOKEN.to_owned()),
        ("UNLEASH_DEFAULT_ADMIN_USERNAME", "admin".to_owned()),
        ("UNLEASH_DEFAULT_ADMIN_PASSWORD", ADMIN_PASSWORD.to_owned()),
        // Many tests may log in within a minute.
        ("SIMPLE_LOGIN_LIMIT_PER_MINUTE", "1000".to_owned()),
        ("LOG_LEVEL", "warn".to_owned()),
        ("NODE_ENV", "production".to_owned()),
    ];
    let (program, home) = (PathBuf::from(node), home.clone());
    let (args, variables) = (vec![main.into()], variables.into());
    Launch { name: "Unleash", program, args, variables, home, stop_signal: "TERM" }
}
