//! What can be told of the configured Postgres beside its version: settings that break a promise, and what keeps the queue's tables
//! from being cleaned.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

use super::Check;
use crate::config::Config;

/// A look at catalogs and statistics.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is looked for, the table of ours that it needs, and the query that finds it: a line for each fault, that says what to do.
const CHECKS: [(&str, &str, Option<&str>, &str); 4] = [
    ("postgres settings", "every commit is on the disk before it is answered, and autovacuum runs", None, SETTINGS),
    ("postgres transactions", "nothing keeps dead rows from being cleaned", None, TRANSACTIONS),
    (
        "postgres upkeep",
        "partitions are there for two days and more, upkeep is done, every index is whole",
        Some("crossover.maintenance"),
        UPKEEP,
    ),
    ("schedules", "Temporal has of each what it is to have", Some("crossover.schedule_mirrors"), SCHEDULES),
];

const SETTINGS: &str = "
    select format('%s is %s: a crash of the server may lose what was accepted, and run again what has run; set it on', name, setting)
    from pg_settings where name in ('fsync', 'full_page_writes', 'synchronous_commit') and setting = 'off'
    union all
    select 'autovacuum is off: the queue gets slower by the hour; set it on' from pg_settings where name = 'autovacuum' and setting = 'off'
    union all
    select format('crossover.%s has autovacuum_enabled=false: it gets slower by the hour; alter table crossover.%1$s reset (autovacuum_enabled)', c.relname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'crossover' and c.reloptions::text ~ 'autovacuum_enabled=(false|off)'";

const TRANSACTIONS: &str = "
    select format('process %s (%s, %s) has had a transaction open for %s: no dead row of the queue since then can be cleaned; end it, or select pg_terminate_backend(%1$s)',
        pid, coalesce(nullif(application_name, ''), 'no name'), state, date_trunc('second', clock_timestamp() - xact_start))
    from pg_stat_activity
    where xact_start < clock_timestamp() - interval '10 minutes' and pid <> pg_backend_pid() and backend_type = 'client backend'
    union all
    select format('transaction %s was prepared %s and left: no dead row since then can be cleaned; rollback prepared or commit prepared', gid, prepared)
    from pg_prepared_xacts where prepared < clock_timestamp() - interval '10 minutes'
    union all
    select format('replication slot %s is not in use and holds back %s: drop it, or bring its replica back', slot_name,
        case when xmin is not null then 'dead rows and log' else 'log' end)
    from pg_replication_slots where not active and (xmin is not null or restart_lsn is not null)";

const UPKEEP: &str = "
    select format('crossover.%s has no partition for %s: start a worker or relay, or run crossover migrate --yes', parent, day::date)
    from unnest(array['tasks', 'payloads', 'attempts', 'sightings']) parent,
        generate_series(current_date, current_date + 2, interval '1 day') day
    where to_regclass(format('crossover.%s_%s', parent, to_char(day, 'YYYYMMDD'))) is null
    union all
    select format('%s has not been done since %s (%s): see docs/runbook/upkeep-old.md', duty,
        date_trunc('second', coalesce(succeeded_at, known_since)), coalesce(error, 'no worker or relay runs'))
    from crossover.maintenance where coalesce(succeeded_at, known_since) < clock_timestamp() - interval '8 hours'
    union all
    select format('index crossover.%s is not whole, because its migration was interrupted: drop index crossover.%1$s, then run crossover migrate --yes', c.relname)
    from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'crossover' and not i.indisvalid and c.relkind = 'i'";

const SCHEDULES: &str = "
    select format('Temporal has not what it is to have of %s schedules, the longest since %s (%s): see docs/runbook/schedule-mirrors-behind.md',
        count(*), date_trunc('second', min(behind_since)), coalesce((array_agg(error) filter (where error is not null))[1], 'no router runs'))
    from crossover.schedule_mirrors where behind_since < clock_timestamp() - interval '5 minutes' having count(*) > 0";

/// Looks at the configured Postgres; nothing where none is, or where it is not there.
pub(super) async fn checks(config: &Config) -> Vec<Check> {
    let Some(url) = &config.postgres.url else { return Vec::new() };
    let look = async {
        let mut connection = PgConnection::connect(url.expose()).await?;
        let mut checks = Vec::new();
        for (check, sound, needs, sql) in CHECKS {
            let there = sqlx::query_scalar("select $1::text is null or to_regclass($1) is not null");
            let there: bool = there.bind(needs).fetch_one(&mut connection).await?;
            if !there {
                checks.push(Check::new(check, Ok("the schema is not this program's yet: crossover migrate".to_owned())));
                continue;
            }
            let faults: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut connection).await?;
            checks.push(Check::new(check, if faults.is_empty() { Ok(sound.to_owned()) } else { Err(faults.join("; ")) }));
        }
        connection.close().await?;
        Ok::<_, sqlx::Error>(checks)
    };
    // Whether it answers at all is another check's to say.
    match timeout(PATIENCE, look).await {
        Ok(looked) => looked.unwrap_or_else(|error| vec![unknown(&error.to_string())]),
        Err(_) => vec![unknown(&format!("no answer within {PATIENCE:?}"))],
    }
}

fn unknown(why: &str) -> Check {
    Check::new("postgres settings", Err(format!("they can't be looked at: {why}; mend what `postgres` says first")))
}
