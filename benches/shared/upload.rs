//! What machines say of themselves, brought to a cluster until it has taken it.

use strongroom::client::{Client, ClientError};

/// Uploads documents until the cluster has taken them. Says how often that was tried again; what was taken is repeated then.
pub async fn upload(client: &Client, documents: &[String]) -> u64 {
    let mut again = 0;
    loop {
        match client.put_compliance_many(documents).await {
            Ok(outcomes) => {
                assert!(outcomes.iter().all(|outcome| ["newest", "repeated"].contains(&&*outcome.outcome)));
                return again;
            }
            Err(ClientError::Unavailable { .. }) => again += 1,
            Err(error) => panic!("{error}"),
        }
    }
}
