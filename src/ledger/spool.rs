//! What a router asks and tells because Postgres may go away, or was.

use std::collections::HashSet;

use sqlx::Row;
use uuid::Uuid;

use super::lent::Lent;
use super::{Ledger, LedgerError, within};
use crate::interaction::series_id;

impl Ledger {
    /// Whether Postgres answers and takes writes.
    pub async fn takes_writes(&self) -> Result<bool, LedgerError> {
        within(async {
            let mut lent = Lent::of(self.pool()).await?;
            let asked = sqlx::query_scalar("select current_setting('transaction_read_only') = 'off'");
            let takes = asked.fetch_one(&mut **lent.connection()?).await;
            lent.give_back();
            takes
        })
        .await
    }

    /// Notes that `account` (absent: every one) has work that was started without a pin and never will have one.
    pub async fn unpinned_for_good(&self, account: Option<&str>) -> Result<(), LedgerError> {
        within(async {
            let mut lent = Lent::of(self.pool()).await?;
            let noted = sqlx::query("select crossover.unpinned_for_good($1)").bind(account);
            let noted = noted.execute(&mut **lent.connection()?).await;
            lent.give_back();
            noted.map(drop)
        })
        .await
    }

    /// The series of which something is accepted that Temporal may not have yet: in the outbox, or in the intake. Absent:
    /// there are more than `most`.
    pub async fn waiting_series(&self, most: usize) -> Result<Option<HashSet<Uuid>>, LedgerError> {
        let rows = within(async {
            let mut lent = Lent::of(self.pool()).await?;
            let asked = sqlx::query("select * from crossover.waiting_series($1)").bind(most as i64 + 1);
            let rows = asked.fetch_all(&mut **lent.connection()?).await;
            lent.give_back();
            rows
        })
        .await?;
        if rows.len() > most {
            return Ok(None);
        }
        let mut found = HashSet::with_capacity(rows.len());
        for row in rows {
            // The intake has names; only a router makes an id of them.
            let id: Option<Uuid> = row.try_get("series_id")?;
            found.insert(match id {
                Some(id) => id,
                None => series_id(row.try_get("account")?, row.try_get("kind")?, row.try_get("series")?),
            });
        }
        Ok(Some(found))
    }
}
