//! What commands that remove several things have in common.

use berth_client::Client;

use super::Global;
use crate::{
    failure::{CommandResult, Failure, code},
    output,
};

/// Removes each, whatever becomes of the others, and fails if one failed. Prints the ids of those that are gone.
pub async fn remove_each(
    global: &Global,
    texts: &[String],
    remove: impl AsyncFn(&Client, &str) -> Result<String, Failure>,
) -> CommandResult {
    let client = global.client().await?;
    let mut removed = Vec::new();
    let mut failed = false;
    for text in texts {
        match remove(&client, text).await {
            Ok(id) if global.json() => removed.push(id),
            Ok(id) => output::data(id)?,
            Err(failure) => {
                failed = true;
                failure.about(text).report();
            }
        }
    }
    if global.json() {
        output::json(&removed)?;
    }
    Ok(if failed { code::FAILED } else { 0 })
}
