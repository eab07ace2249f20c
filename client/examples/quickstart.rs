use std::time::Duration;

use berth_client::{Client, Command, CreateOptions, Error};

pub async fn example() -> Result<(), Error> {
    let client = Client::from_env().await?;
    let options = CreateOptions::new()
        .memory_bytes(256 << 20)
        .label("made-by", "quickstart")
        .ttl(Duration::from_secs(300));
    let session = client.create_session(options).await?;

    // A program with arguments; its output is collected.
    let output = session.run(Command::new("python3").arg("-c").arg("print(6 * 7)")).await?;
    assert!(output.success());
    assert_eq!(output.stdout_text(), "42\n");

    // Files, and a shell line that reads one.
    session.files().write("notes.txt", "b\na\n").await?;
    let output = session.run(Command::shell("sort notes.txt").timeout(Duration::from_secs(10))).await?;
    assert_eq!(output.stdout_text(), "a\nb\n");

    session.delete().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    example().await
}
