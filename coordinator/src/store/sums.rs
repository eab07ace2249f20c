//! A sum in each row over all else in it. SQLite finds a page that makes no sense, and our look at the log one that has
//! rotted there ([`super::wal`]); but a bit that flips inside a value leaves a page that makes sense, and an epoch, a
//! state or a name that was never written.
//!
//! The sum is of names and values, so a value that has moved into another column is found too. What is NULL is left out:
//! so a row of before a column was added keeps its sum, as long as the new column is NULL in it. (A later migration that
//! fills a column in must take the sums of those rows away.)
//!
//! Rejected: SQLite's own checksums of pages (the `cksumvfs` extension), which is not in the build that sqlx brings, and
//! reads everything twice.

use berth_checkpoint::Digest;
use sqlx::{Column, Row, SqliteConnection, TypeInfo, ValueRef, sqlite::SqliteRow};

use super::StoreError;

/// The column.
const SUM: &str = "sum";
/// Too many to be looked at before each start, if the file is large. Each is looked at when it is read.
const TASKS: &str = "tasks";

/// A value as SQLite keeps it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

macro_rules! from {
    ($($of:ty => $kind:ident,)*) => {
        $(impl From<$of> for Value {
            fn from(value: $of) -> Self {
                Self::$kind(value.into())
            }
        }

        impl From<Option<$of>> for Value {
            fn from(value: Option<$of>) -> Self {
                value.map_or(Self::Null, Self::from)
            }
        })*
    };
}

from! {
    i64 => Int,
    String => Text,
    &str => Text,
    Vec<u8> => Blob,
}

/// A row that is to be written: columns and values.
pub(super) type Fields = Vec<(&'static str, Value)>;

fn sum<'a>(fields: impl IntoIterator<Item = (&'a str, &'a Value)>) -> i64 {
    let mut fields: Vec<_> = fields.into_iter().filter(|(_, value)| **value != Value::Null).collect();
    fields.sort_by_key(|(name, _)| *name);
    let mut text = Vec::new();
    let mut part = |kind: u8, bytes: &[u8]| {
        text.push(kind);
        text.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        text.extend_from_slice(bytes);
    };
    for (name, value) in fields {
        part(0, name.as_bytes());
        match value {
            Value::Null => {}
            Value::Int(number) => part(1, &number.to_le_bytes()),
            Value::Text(text) => part(2, text.as_bytes()),
            Value::Blob(bytes) => part(3, bytes),
        }
    }
    let digest = Digest::of(&text).0;
    i64::from_le_bytes(digest[..8].try_into().expect("eight bytes"))
}

/// What becomes of a row that is there already.
#[derive(Clone, Copy)]
pub(super) enum Or {
    Replace,
    Ignore,
}

/// Writes a row, with its sum.
pub(super) async fn insert(
    tx: &mut SqliteConnection,
    or: Or,
    table: &str,
    fields: Fields,
) -> Result<(), StoreError> {
    let or = match or {
        Or::Replace => "REPLACE",
        Or::Ignore => "IGNORE",
    };
    let total = sum(fields.iter().map(|(name, value)| (*name, value)));
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let (names, marks) = (names.join(", "), "?, ".repeat(fields.len()));
    // Names of our own, and values bound.
    let sql = format!("INSERT OR {or} INTO {table} ({names}, {SUM}) VALUES ({marks}?)");
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
    for (_, value) in fields {
        query = match value {
            Value::Null => query.bind(None::<i64>),
            Value::Int(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Blob(bytes) => query.bind(bytes),
        };
    }
    query.bind(total).execute(tx).await?;
    Ok(())
}

/// The fields of a row, and its sum, if it has one.
type Summed = (Vec<(String, Value)>, Option<i64>);

fn read(row: &SqliteRow) -> Result<Summed, sqlx::Error> {
    let (mut fields, mut total) = (Vec::with_capacity(row.len()), None);
    for (at, column) in row.columns().iter().enumerate() {
        let raw = row.try_get_raw(at)?;
        let value = match raw.type_info().name() {
            _ if raw.is_null() => Value::Null,
            "INTEGER" => Value::Int(row.try_get_unchecked(at)?),
            "TEXT" => Value::Text(row.try_get_unchecked(at)?),
            _ => Value::Blob(row.try_get_unchecked(at)?),
        };
        match (column.name(), value) {
            (SUM, Value::Int(found)) => total = Some(found),
            (SUM, _) => {}
            (name, value) => fields.push((name.to_owned(), value)),
        }
    }
    Ok((fields, total))
}

/// Whether a row is as it was written. One of before there were sums is taken as it is.
pub(super) fn check(table: &str, row: &SqliteRow) -> Result<(), StoreError> {
    let (fields, total) = read(row)?;
    if total.is_none_or(|total| total == sum(fields.iter().map(|(name, value)| (name.as_str(), value)))) {
        return Ok(());
    }
    let key = match fields.first() {
        Some((_, Value::Text(key))) => key.chars().take(64).collect(),
        _ => String::new(),
    };
    Err(StoreError::Damaged(format!("row {key:?} of {table} is not as it was written")))
}

/// The tables of a database whose rows have sums.
async fn tables(connection: &mut SqliteConnection) -> Result<Vec<String>, sqlx::Error> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table'
               AND EXISTS (SELECT 1 FROM pragma_table_info(sqlite_schema.name) WHERE name = 'sum')";
    let found: Vec<(String,)> = sqlx::query_as(sql).fetch_all(connection).await?;
    Ok(found.into_iter().map(|(name,)| name).collect())
}

/// Looks at all rows that have sums; at those of tasks only `in_full`.
pub(super) async fn check_all(connection: &mut SqliteConnection, in_full: bool) -> Result<(), StoreError> {
    for table in tables(connection).await? {
        if table == TASKS && !in_full {
            continue;
        }
        let sql = format!("SELECT * FROM \"{table}\"");
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch(&mut *connection);
        while let Some(row) = futures::TryStreamExt::try_next(&mut rows).await? {
            check(&table, &row)?;
        }
    }
    Ok(())
}

/// Gives their sums to rows of before there were any.
pub(super) async fn fill_in(tx: &mut SqliteConnection) -> Result<(), StoreError> {
    for table in tables(tx).await?.into_iter().filter(|table| table != TASKS) {
        let sql = format!("SELECT rowid AS \"(row)\", * FROM \"{table}\" WHERE {SUM} IS NULL");
        for row in sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *tx).await? {
            let (fields, _) = read(&row)?;
            let of = fields.iter().filter(|(name, _)| name != "(row)");
            let total = sum(of.map(|(name, value)| (name.as_str(), value)));
            let sql = format!("UPDATE \"{table}\" SET {SUM} = ? WHERE rowid = ?");
            let row: i64 = row.try_get("(row)")?;
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(total).bind(row).execute(&mut *tx).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when names are left out, or NULL is not.
    #[test]
    fn each_name_and_value_counts_and_null_does_not() {
        let of = |fields: &[(&'static str, Value)]| sum(fields.iter().map(|(name, value)| (*name, value)));
        let row: Fields = vec![("a", 1.into()), ("b", "x".into()), ("c", Value::Null)];
        assert_eq!(of(&row), of(&row.iter().rev().cloned().collect::<Vec<_>>()));
        assert_eq!(of(&row), of(&row[..2]));
        let others: [Fields; 7] = [
            vec![("a", 1.into()), ("d", "x".into())],
            vec![("a", 2.into()), ("b", "x".into())],
            vec![("b", 1.into()), ("a", "x".into())],
            vec![("a", 1.into()), ("b", "X".into())],
            vec![("a", 1.into()), ("b", Value::Blob(b"x".to_vec()))],
            vec![("a", 1.into()), ("bx", "".into())],
            vec![("a", 1.into())],
        ];
        for other in others {
            assert_ne!(of(&row), of(&other), "{other:?}");
        }
    }
}
