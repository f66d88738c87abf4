//! The failures that the protocol was built for, each staged on the real servers. Those that nobody else had staged are
//! in here; `docs/named-failures.md` says for each of the list where it is.

mod postgres;
mod routers;
mod table;
mod workers;

use std::time::Duration;

use crossover::app::Roles;
use crossover::interaction::{Side, Stage};
use serde_json::{Value, json};
use sqlx::Connection;
use uuid::Uuid;

use crate::bridge::child::Child;
use crate::bridge::until;
use crate::bridge::world::{ALL, Node, ROUTER, WORKER, World, document, with};
use crate::servers;

/// Takes the lock that an account's pins share: they wait for as long as the transaction lasts.
async fn lock_account(connection: &mut sqlx::PgConnection, account: &str) {
    let lock = sqlx::query("select pg_advisory_xact_lock(crossover.account_lock($1))").bind(account);
    lock.execute(connection).await.unwrap();
}
