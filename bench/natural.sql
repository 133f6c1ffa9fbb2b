-- What a careful service does without group commit: one transaction a reservation.
\set id random(1, :rows)
BEGIN;
UPDATE natural_stock SET reserved = reserved + 1, version = version + 1, updated_at = now()
 WHERE id = :id AND on_hand - reserved >= 1;
INSERT INTO natural_ledger (item_id, type, quantity, actor, correlation_id)
VALUES (:id, 'RESERVATION', 1, 'bench', 'bench');
INSERT INTO natural_outbox (item_id, event_type, body)
VALUES (:id, 'StockLevelChanged', repeat('x', 700));
COMMIT;
