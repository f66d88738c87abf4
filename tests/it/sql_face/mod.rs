//! What programs and people use from SQL, against the real schema.

#[cfg(feature = "temporal")]
mod intake;
mod views;

use std::time::Duration;

use crossover::ledger::{self, Ledger};
use serde_json::json;
use sqlx::{PgConnection, Row};

use crate::servers;

/// A migrated database of a test's own.
pub async fn ledger() -> Ledger {
    ledger_at(&servers::database().await).await
}

/// That database, migrated.
pub async fn ledger_at(url: &str) -> Ledger {
    let ledger = Ledger::new(ledger::pool(url, 5, Duration::from_secs(10)).unwrap());
    ledger.migrate().await.unwrap();
    ledger
}

/// Enqueues with these arguments after the first three; the error's code and words.
async fn enqueue(connection: &mut PgConnection, arguments: &str) -> Result<uuid::Uuid, (String, String)> {
    let sql = format!("select crossover.enqueue({arguments})");
    let asked = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(connection).await;
    asked.map_err(|error| {
        let error = error.into_database_error().unwrap();
        (error.code().unwrap().into_owned(), error.message().to_owned())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_migrate_at_once_wait_for_each_other() {
    let url = servers::database().await;
    let four = futures::future::join_all((0..4).map(|_| ledger_at(&url)));
    let ledgers = tokio::time::timeout(Duration::from_secs(60), four).await.expect("none waits for ever");
    assert_eq!(ledgers[0].pending_migrations().await.unwrap(), []);
}

#[tokio::test]
async fn an_index_that_is_built_beside_the_work_waits_for_a_transaction_that_is_open() {
    let url = servers::database().await;
    let elsewhere = ledger::pool(&url, 1, Duration::from_secs(10)).unwrap();
    let mut open = elsewhere.begin().await.unwrap();
    sqlx::query("set transaction isolation level repeatable read").execute(&mut *open).await.unwrap();
    sqlx::query("select count(*) from pg_class").execute(&mut *open).await.unwrap();
    let ended = std::cell::Cell::new(false);
    let migrate = async {
        let ledger = ledger_at(&url).await;
        assert!(ended.get(), "it waits");
        ledger
    };
    let end = async {
        // Longer than it waits for a lock that others queue behind.
        tokio::time::sleep(Duration::from_secs(4)).await;
        ended.set(true);
        open.rollback().await.unwrap();
    };
    let (ledger, ()) = tokio::join!(migrate, end);
    assert!(ledger.pending_migrations().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_interaction_is_accepted_if_and_only_if_the_callers_transaction_commits() {
    let ledger = ledger().await;
    let mut open = ledger.pool().begin().await.unwrap();
    let id =
        enqueue(&mut open, "'a', 'sync', '{\"n\": 1.50}', key => 'one', series => 's', priority => 7").await.unwrap();
    assert_eq!(id, crossover::interaction::interaction_id("a", "one"));
    let state = async || {
        let asked = sqlx::query_scalar::<_, String>("select state from crossover.interactions where id = $1");
        asked.bind(id).fetch_optional(ledger.pool()).await.unwrap()
    };
    assert_eq!(state().await, None);
    open.rollback().await.unwrap();
    assert_eq!(state().await, None);
    let mut open = ledger.pool().begin().await.unwrap();
    enqueue(&mut open, "'a', 'sync', '{\"n\": 1.50}', key => 'one', series => 's', priority => 7").await.unwrap();
    open.commit().await.unwrap();
    assert_eq!(state().await.as_deref(), Some("accepted"));
}

#[tokio::test]
async fn every_fault_is_named_at_once_and_nothing_is_written() {
    let ledger = ledger().await;
    let mut connection = ledger.pool().acquire().await.unwrap();
    let deep = format!("{}{}", "[".repeat(129), "]".repeat(129));
    let arguments = format!(
        "'', repeat('k', 101), '{deep}', key => E'a\\x01b', run_at => 'infinity', priority => 101, policy => '{}'",
        json!({ "max_attempts": 0, "run_timeout_ms": "1", "max_atempts": 3, "start_timeout_ms": null,
            "backoff": { "factor": 0.5, "jitter": 0.1, "max_ms": 1.5 } })
    );
    let (code, said) = enqueue(&mut connection, &arguments).await.unwrap_err();
    assert_eq!(code, "22023");
    for field in [
        "account: is empty",
        "kind: has 101 characters",
        "key: holds a control character",
        "payload: it is nested more than 128 levels deep",
        "priority: must be -100 to 100, is 101",
        "run_at: is infinity",
        "policy.max_atempts: is no field",
        "policy.max_attempts: must be 1 to 1000, is 0",
        "policy.run_timeout_ms: must be a whole number",
        "policy.backoff.factor: must be 1 to 100, is 0.5",
        "policy.backoff.max_ms: must be a whole number",
    ] {
        assert!(said.contains(field), "{field} is not in: {said}");
    }
    assert_eq!(said.matches(';').count(), 11, "more was found than is wrong: {said}");
    let (code, said) = enqueue(&mut connection, "null, 'k', null").await.unwrap_err();
    assert_eq!(
        (code.as_str(), said.as_str()),
        ("22023", "not accepted: account: is missing; payload: is missing; any JSON value is one, null too")
    );
    let rows: i64 =
        sqlx::query_scalar("select count(*) from crossover.intake").fetch_one(&mut *connection).await.unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn what_the_api_takes_the_function_takes() {
    let ledger = ledger().await;
    let mut connection = ledger.pool().acquire().await.unwrap();
    let level = format!("{}\"[[{{\\\\\\\"\"{}", "[".repeat(128), "]".repeat(128));
    for arguments in [
        "'a', 'k', 'null'".to_owned(),
        "'a', 'k', ' {\"a\": \"\\u0000\"} ', policy => '{}'".to_owned(),
        format!("'a', 'k', '{level}', policy => null"),
        "'a', 'k', '1', policy => '{\"backoff\": {\"delays_ms\": [0, 5]}, \"max_attempts\": null}'".to_owned(),
        "'a', 'k', '1', policy => '{\"backoff\": {\"initial_ms\": 1, \"factor\": 1e1}}', priority => null".to_owned(),
    ] {
        enqueue(&mut connection, &arguments).await.unwrap_or_else(|error| panic!("{arguments}: {error:?}"));
    }
    for refused in [
        "'{\"backoff\": {\"delays_ms\": []}}'",
        "'{\"backoff\": {\"delays_ms\": [1, -1]}}'",
        "'{\"backoff\": 7}'",
        "'[]'",
    ] {
        let (code, said) = enqueue(&mut connection, &format!("'a', 'k', '1', policy => {refused}")).await.unwrap_err();
        assert!(code == "22023" && said.contains("policy"), "{refused}: {said}");
    }
}

#[tokio::test]
async fn a_key_repeated_gets_the_same_id_and_with_other_work_an_error() {
    let ledger = ledger().await;
    let mut connection = ledger.pool().acquire().await.unwrap();
    let first = enqueue(&mut connection, "'a', 'k', '{\"n\": 1}', key => 'one'").await.unwrap();
    assert_eq!(enqueue(&mut connection, "'a', 'k', ' {\"n\": 1} ', key => 'one'").await.unwrap(), first);
    for (other, what) in [("'a', 'k', '{\"n\": 2}'", "payload"), ("'a', 'j', '{\"n\": 1}'", "kind")] {
        let (code, said) = enqueue(&mut connection, &format!("{other}, key => 'one'")).await.unwrap_err();
        assert!(code == "23505" && said.contains(&format!("with another {what}")), "{said}");
    }
    let rows = sqlx::query("select count(*) as rows, max(no) as no from crossover.intake")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    assert_eq!(rows.get::<i64, _>("rows"), 1);
}

#[tokio::test]
async fn a_role_that_may_only_enqueue_can_do_nothing_else() {
    let ledger = ledger().await;
    let mut open = ledger.pool().begin().await.unwrap();
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    for sql in [
        format!("create role {role}"),
        format!("grant usage on schema crossover to {role}"),
        format!("set local role {role}"),
        "savepoint before".to_owned(),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *open).await.unwrap();
    }
    assert_eq!(enqueue(&mut open, "'a', 'k', '1'").await.unwrap_err().0, "42501");
    for sql in [
        "rollback to before".to_owned(),
        "reset role".to_owned(),
        format!("grant execute on function crossover.enqueue to {role}"),
        format!("set local role {role}"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *open).await.unwrap();
    }
    enqueue(&mut open, "'a', 'k', '1'").await.unwrap();
    let read = sqlx::query("select * from crossover.intake").execute(&mut *open).await.unwrap_err();
    assert_eq!(read.into_database_error().unwrap().code().unwrap(), "42501");
}

#[tokio::test]
async fn a_run_made_by_a_reset_counts_on_from_what_a_runner_took_away() {
    let ledger = ledger().await;
    let pinned = "select (pin).id from crossover.pin('a', 'one', 'sync', 'shadow', 'test', null, null, 'default', 0::smallint, null,
        sha256('1'), '1', '{}', 1, '0 s')";
    let id: uuid::Uuid = sqlx::query_scalar(pinned).fetch_one(ledger.pool()).await.unwrap();
    // The first attempt was lost with its worker and nobody has said so yet.
    let away =
        "select crossover.detach_from_temporal($1, 1, 2, 1000, 60000, 1000, 'token', 0, now(), now(), '{}', true)";
    sqlx::query(away).bind(id).execute(ledger.pool()).await.unwrap();
    let anew = sqlx::query_scalar::<_, i32>("select crossover.count_anew($1, 1, 0)").bind(id);
    assert_eq!(anew.fetch_one(ledger.pool()).await.unwrap(), 2, "so the new run calls under 1.3");
}

#[tokio::test]
async fn a_reset_to_before_a_persons_answer_is_told_it_again() {
    let ledger = ledger().await;
    let pinned = "select (pin).id from crossover.pin('a', 'one', 'sync', 'shadow', 'test', null, null, 'default', 0::smallint, null,
        sha256('1'), '1', '{}', 1, '0 s')";
    let id: uuid::Uuid = sqlx::query_scalar(pinned).fetch_one(ledger.pool()).await.unwrap();
    let park = async || {
        let asked = "select crossover.park_attempt($1, 1, 1, 'connection', 'broke', now(), now())";
        sqlx::query_scalar::<_, String>(asked).bind(id).fetch_one(ledger.pool()).await.unwrap()
    };
    assert_eq!(park().await, "parked");
    let answer = "with told as (delete from crossover.parked where id = $1)
        insert into crossover.resolutions (id, parked_at, epoch, attempt, side, cause, answer, who)
        values ($1, now(), 1, 1, 'temporal', 'connection', 'retry', 'somebody')";
    sqlx::query(answer).bind(id).execute(ledger.pool()).await.unwrap();
    assert_eq!(park().await, "known");
    let told = sqlx::query_scalar::<_, String>("select answer from crossover.parked where id = $1").bind(id);
    assert_eq!(told.fetch_one(ledger.pool()).await.unwrap(), "retry");
}

#[tokio::test]
async fn what_orders_work_from_sql_names_what_is_there_and_every_fault_is_named() {
    let ledger = ledger().await;
    let mut connection = ledger.pool().acquire().await.unwrap();
    let mut ordered = async |arguments: &str| {
        let sql = format!("select crossover.enqueue_ordered('a', 'k', '1', {arguments})");
        let asked = sqlx::query_scalar::<_, uuid::Uuid>(sqlx::AssertSqlSafe(sql)).fetch_one(&mut *connection).await;
        asked.map_err(|error| {
            let error = error.into_database_error().unwrap();
            (error.code().unwrap().into_owned(), error.message().to_owned())
        })
    };
    let first = ordered("key => '1'").await.unwrap();
    ordered("key => '2', after => '[]', exclusive => 'e'").await.unwrap();
    ordered(&format!("key => '3', after => '[\"{first}\"]'")).await.unwrap();
    // A repeated key keeps what it said first, whatever it names then.
    ordered("key => '3', after => '{\"keys\": [\"nobody\"]}'").await.unwrap();
    for (arguments, said) in [
        ("key => '4', after => '{\"keys\": [\"nobody\"]}'", "has no interactions"),
        ("key => '4', after => '{\"keys\": [\"4\"]}'", "names the interaction itself"),
        ("after => '7'", "after: must be a list of ids"),
        ("after => '[7]'", "after.ids: must list ids"),
        ("after => '{\"ids\": \"x\", \"idz\": []}'", "after.idz: is no field"),
        ("after => '{\"keys\": [\"\"]}'", "after.keys: must list keys"),
        ("after => '{\"when\": \"some\", \"on_failure\": \"panic\"}'", "after.on_failure: must be skip or run"),
        ("after => to_json(array_fill(gen_random_uuid(), array[1001]))", "names 1001 interactions"),
        ("exclusive => ''", "exclusive: is empty"),
        ("exclusive => repeat('x', 401)", "exclusive: has 401 characters"),
    ] {
        let refused = ordered(arguments).await.unwrap_err();
        assert!(refused.0 == "22023" && refused.1.contains(said), "{arguments}: {refused:?}");
    }
    let kept: Vec<(String, Option<Vec<uuid::Uuid>>, Option<String>)> =
        sqlx::query_as("select key, after_ids, exclusive from crossover.intake order by no")
            .fetch_all(ledger.pool())
            .await
            .unwrap();
    let row = |key: &str, ids: Option<Vec<uuid::Uuid>>, exclusive: Option<&str>| {
        (key.to_owned(), ids, exclusive.map(str::to_owned))
    };
    assert_eq!(kept, [row("1", None, None), row("2", None, Some("e")), row("3", Some(vec![first]), None)]);
    let public: bool = sqlx::query_scalar(
        "select exists (select from pg_proc p, aclexplode(p.proacl) a
            where p.proname in ('enqueue', 'enqueue_ordered') and p.pronamespace = 'crossover'::regnamespace and a.grantee = 0)",
    )
    .fetch_one(ledger.pool())
    .await
    .unwrap();
    assert!(!public, "everybody may enqueue");
}
