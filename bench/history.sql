-- A store that has been used: :reservations one-unit reservations, each fulfilled since, dealt round over the items.
-- Two ledger rows, one published event and one stored answer each, as the service would have left them.
CREATE TEMPORARY TABLE dealt AS
SELECT row_number() OVER (ORDER BY item.id) - 1 AS place, item.id, item.product_id, item.warehouse_id, item.sku,
       item.version, item.on_hand, product.sequence
  FROM inventory_item AS item JOIN product ON product.id = item.product_id;
CREATE TEMPORARY TABLE past AS
SELECT n, n / (SELECT count(*) FROM dealt) AS turn, dealt.*, upper(lpad(to_hex(n), 26, '0')) AS tail,
       now() - interval '40 hours' + n * (interval '39 hours' / :reservations) AS at
  FROM generate_series(0, :reservations - 1) AS n JOIN dealt ON dealt.place = n % (SELECT count(*) FROM dealt);

INSERT INTO reservation (id, status, reference_type, reference_number, expires_at, confirmed_at, created_at, updated_at)
SELECT 'res_' || tail, 'FULFILLED', 'ORDER', 'SO-' || n, NULL, at, at, at FROM past;
INSERT INTO reservation_line
  (reservation_id, line, inventory_item_id, quantity, fulfilled_quantity, released_quantity)
SELECT 'res_' || tail, 1, id, 1, 1, 0 FROM past;

INSERT INTO stock_transaction
  (id, inventory_item_id, product_id, warehouse_id, sku, item_version, type, on_hand_change, reserved_change,
   on_hand_after, reserved_after, available_after, reference_type, reference_number, reservation_id, actor,
   correlation_id, occurred_at, recorded_at)
SELECT 'tx_' || step || substr(tail, 2), id, product_id, warehouse_id, sku, version + 2 * turn + 1 + step,
       CASE step WHEN 0 THEN 'RESERVATION' ELSE 'FULFILMENT' END, -step, 1 - 2 * step,
       on_hand - turn - step, 1 - step, on_hand - turn - 1, 'ORDER', 'SO-' || n, 'res_' || tail, 'bench',
       'corr-' || n, at, at
  FROM past, generate_series(0, 1) AS step ORDER BY n, step;

INSERT INTO outbox
  (product_id, sequence, event_id, event_type, aggregate_id, correlation_id, critical, body, created_at, published_at,
   position)
SELECT past.product_id, past.sequence + past.turn + 1, gen_random_uuid(), example.event_type, past.id, 'corr-' || n,
       false, example.body, at, at, n + 1
  FROM past, (SELECT event_type, body FROM outbox WHERE event_type = 'StockLevelChanged' LIMIT 1) AS example ORDER BY n;
INSERT INTO lease (name, owner, token, position, expires_at)
VALUES ('relay', '', 1, :reservations, now() - interval '1 second')
ON CONFLICT (name) DO UPDATE SET position = excluded.position;

INSERT INTO idempotency_key (issuer, subject, key, fingerprint, answer, created_at)
SELECT 'inventory-service', 'tests', 'past-' || n, sha256(int8send(n)), convert_to(repeat('x', 400), 'UTF8'), at
  FROM past;

UPDATE inventory_item AS item
   SET version = item.version + 2 * done.turns, on_hand = item.on_hand - done.turns,
       available = item.available - done.turns, updated_at = done.at
  FROM (SELECT id, count(*) AS turns, max(at) AS at FROM past GROUP BY id) AS done WHERE item.id = done.id;
UPDATE product
   SET sequence = product.sequence + done.turns, revision = product.revision + 2 * done.turns,
       total_on_hand = product.total_on_hand - done.turns, total_available = product.total_available - done.turns
  FROM (SELECT product_id, count(*) AS turns FROM past GROUP BY product_id) AS done
 WHERE product.id = done.product_id;
DROP TABLE past, dealt;
