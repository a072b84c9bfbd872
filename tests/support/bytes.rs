//! A dumper of given bytes, and reading them back.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use pgark::{Ctx, Dumped, Dumper, PartSink, PartSource, PartSpec, Restorer, Result};
use serde_json::{Map, Value};

/// Writes parts, each in given chunks, all parts at once.
#[derive(Clone, Default)]
pub struct BytesDumper {
    pub parts: Vec<Vec<Bytes>>,
}

impl BytesDumper {
    pub fn one(bytes: impl Into<Bytes>) -> Self {
        Self { parts: vec![vec![bytes.into()]] }
    }
}

#[async_trait]
impl Dumper for BytesDumper {
    fn kind(&self) -> &'static str {
        "bytes"
    }

    fn max_open(&self, _: usize) -> usize {
        self.parts.len().max(1)
    }

    async fn dump(&self, sink: Arc<dyn PartSink>, _: &Ctx) -> Result<Dumped> {
        let writes = self.parts.iter().enumerate().map(|(i, chunks)| {
            let sink = Arc::clone(&sink);
            async move {
                let mut part = sink.open(PartSpec { kind: "raw".into(), name: format!("part-{i}") }).await?;
                for chunk in chunks {
                    part.write(chunk.clone()).await?;
                }
                part.finish().await.map(|_| ())
            }
        });
        futures::future::try_join_all(writes).await?;
        Ok(Dumped::default())
    }
}

/// Collects the parts, by name.
#[derive(Clone, Default)]
pub struct BytesRestorer(pub Arc<Mutex<Parts>>);

/// Parts and their names, in the order in which they came.
pub type Parts = Vec<(String, Vec<u8>)>;

#[async_trait]
impl Restorer for BytesRestorer {
    fn accepts(&self, kind: &str) -> bool {
        kind == "bytes"
    }

    async fn restore(&self, parts: Arc<dyn PartSource>, _: &Ctx) -> Result<Map<String, Value>> {
        for part in parts.parts() {
            let chunks: Vec<Bytes> = parts.open(part.part).await?.try_collect().await?;
            self.0.lock().unwrap().push((part.spec.name, chunks.concat()));
        }
        self.0.lock().unwrap().sort();
        Ok(Map::new())
    }
}
