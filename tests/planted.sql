-- {items} products of one item each, as the service would have left them: received, some of it held, some on its way.
CREATE TEMPORARY TABLE made AS
SELECT n, 'prod_' || lpad(n::text, 8, '0') AS product_id, 'inv_' || lpad(n::text, 8, '0') AS id,
       'SKU-' || lpad(n::text, 8, '0') AS sku, n % 10 < 5 AS holds, n % 10 < 2 AS expects, now() - interval '1 day' AS at
  FROM generate_series(1, {items}) AS n;
INSERT INTO warehouse (id, name, priority, lead_time_min, lead_time_max, active, version, created_at, updated_at)
VALUES ('wh_1', 'North', 1, 1, 2, true, 1, now(), now());
INSERT INTO product (id, total_on_hand, total_reserved, total_available, total_expected, low_stock_threshold, status,
  sequence, revision, catalog, updated_at)
SELECT product_id, 100 + CASE WHEN expects THEN 3 ELSE 0 END, CASE WHEN holds THEN 2 ELSE 0 END,
       100 + CASE WHEN expects THEN 3 ELSE 0 END - CASE WHEN holds THEN 2 ELSE 0 END,
       CASE WHEN expects THEN 37 ELSE 0 END, 10, 'ACTIVE', 1 + holds::int + expects::int, 3,
       jsonb_build_object('variants', jsonb_build_object('v1', jsonb_build_object('sku', sku, 'name', 'Thing ' || n,
         'named', jsonb_build_object('timestamp', '2026-01-01T00:00:00Z', 'eventId', 'e' || n),
         'created', jsonb_build_object('timestamp', '2026-01-01T00:00:00Z', 'eventId', 'e' || n))), 'deleted', NULL)::text,
       at
  FROM made;
INSERT INTO inventory_item (id, sku, product_id, warehouse_id, name, on_hand, reserved, available, safety_stock,
  shortfall, reorder_threshold, target_stock_level, status, metadata, version, created_at, updated_at)
SELECT made.id, sku, product_id, 'wh_1', 'Thing ' || n, total_on_hand, total_reserved, total_available, 0, 0, 10, 50,
       'ACTIVE', '{{}}', sequence, at, at
  FROM made JOIN product ON product.id = product_id;
CREATE TEMPORARY TABLE moved AS
SELECT made.*, 1 AS version, 'RECEIPT' AS type, 100 AS change, 0 AS held, 100 AS on_hand, 0 AS reserved FROM made
UNION ALL SELECT made.*, 2, 'RESERVATION', 0, 2, 100, 2 FROM made WHERE holds
UNION ALL SELECT made.*, 3, 'RECEIPT', 3, 0, 103, 2 FROM made WHERE expects;
INSERT INTO stock_transaction (id, inventory_item_id, product_id, warehouse_id, sku, item_version, type, on_hand_change,
  reserved_change, on_hand_after, reserved_after, available_after, reservation_id, expected_receipt_id, actor,
  correlation_id, occurred_at, recorded_at)
SELECT 'tx_' || version || lpad(n::text, 8, '0'), id, product_id, 'wh_1', sku, version, type, change, held, on_hand,
       reserved, on_hand - reserved, CASE WHEN version = 2 THEN 'res_' || lpad(n::text, 8, '0') END,
       CASE WHEN version = 3 THEN 'exp_' || lpad(n::text, 8, '0') END, 'made', 'made', at + version * interval '1 s',
       at + version * interval '1 s'
  FROM moved;
INSERT INTO outbox (product_id, sequence, event_id, event_type, aggregate_id, correlation_id, critical, body, created_at,
  published_at, position)
SELECT product_id, version, 'evt-' || version || '-' || n, 'StockLevelChanged', id, 'made', false, '\x7b7d',
       at + version * interval '1 s', now(), row_number() OVER ()
  FROM moved;
INSERT INTO reservation (id, status, expires_at, created_at, updated_at)
SELECT 'res_' || lpad(n::text, 8, '0'), 'HELD', now() + interval '1 day', at, at FROM made WHERE holds;
INSERT INTO reservation_line (reservation_id, line, inventory_item_id, quantity, fulfilled_quantity, released_quantity)
SELECT 'res_' || lpad(n::text, 8, '0'), 0, id, 2, 0, 0 FROM made WHERE holds;
INSERT INTO expected_receipt (id, inventory_item_id, quantity, received_quantity, outstanding_quantity, expected_at,
  status, version, created_at, updated_at)
SELECT 'exp_' || lpad(n::text, 8, '0'), id, 40, 3, 37, now() + interval '1 day', 'PARTIALLY_RECEIVED', 2, at, at
  FROM made WHERE expects;
DROP TABLE moved, made
