CREATE TABLE natural_stock (id bigint PRIMARY KEY, on_hand bigint NOT NULL, reserved bigint NOT NULL,
  version bigint NOT NULL, updated_at timestamptz NOT NULL) WITH (fillfactor = 70);
CREATE TABLE natural_ledger (id bigserial PRIMARY KEY, item_id bigint NOT NULL, type text NOT NULL,
  quantity bigint NOT NULL, actor text NOT NULL, correlation_id text NOT NULL, recorded_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE natural_outbox (id bigserial PRIMARY KEY, item_id bigint NOT NULL, event_type text NOT NULL,
  body text NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), published_at timestamptz);
CREATE INDEX natural_pending ON natural_outbox (id) WHERE published_at IS NULL;
INSERT INTO natural_stock SELECT n, 1000000000, 0, 1, now() FROM generate_series(1, 2000) AS n;
