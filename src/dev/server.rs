//! The HTTP server under a simulator: on loopback, and it can be stopped and started again on the same
//! port, as a server that restarts.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Serves a router until it is stopped or dropped.
pub struct Server {
    pub address: SocketAddr,
    router: Router,
    serving: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on loopback; port 0 takes a free one.
    pub async fn start(port: u16, router: Router) -> std::io::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut server = Self { address, router, serving: None };
        server.restart().await?;
        Ok(server)
    }

    /// Listens (again), on the same port.
    pub async fn restart(&mut self) -> std::io::Result<()> {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await?;
        self.address = listener.local_addr()?;
        // Some simulators look at the caller's address, as their originals do.
        let service = self.router.clone().into_make_service_with_connect_info::<SocketAddr>();
        self.serving = Some(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, service).await {
                tracing::error!(%error, "a simulator stopped listening");
            }
        }));
        Ok(())
    }

    /// Stops listening; clients find the connection refused.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // Cancelled, as we wished.
            let _ = serving.await;
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}
